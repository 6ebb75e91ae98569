"""The tokenizers of the shared folder in transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest


@pytest.fixture(scope="session")
def load_reference(shared) -> Callable[[str], Any]:
    """Each loaded once: load_reference("tokenizers/gpt2")."""
    from transformers import AutoTokenizer

    return cache(lambda name: AutoTokenizer.from_pretrained(shared / name))
