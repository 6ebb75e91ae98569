"""stand-in"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Security:
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    max_body: int = 2_000_000
def Guard(app, security): return app
