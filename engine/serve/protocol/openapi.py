"""stand-in"""

from typing import Any


def document(version: str) -> dict[str, Any]:
    return {}
