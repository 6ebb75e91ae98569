"""Where a server is, and the key for it."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit

from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.files import local_path

KEY_VARIABLES = ("BARELOOP_API_KEY", "OPENAI_API_KEY")
API_PATH = re.compile(r"(/v1(/chat)?(/completions)?)?/*$")


@dataclass(frozen=True)
class Address:
    """A server's address. `root`: without /v1; it may hold a password, `shown` does not."""

    root: str
    shown: str
    password: str | None
    secrets: tuple[str, ...]  # of the URL, in all forms in which a server may repeat them
    port: int | None
    is_local: bool  # on this machine, so that no proxy is asked

    @property
    def needs_certificates(self) -> bool:
        """Whether a client has to read certificates, which takes 0.1 s."""
        return not (self.is_local and self.root.startswith("http:"))

    @staticmethod
    def parse(url: str) -> Address:
        """Read a URL, with or without http:// and /v1. Raises `UsageError` if it is none."""
        text = url.strip()
        if "://" not in text:
            text = f"http://{text}"
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or any(c.isspace() for c in text):
            raise UsageError(f"{quote(_hidden(url))} is not the address of a server; for example http://127.0.0.1:8000")
        if parts.query or parts.fragment:
            raise UsageError(f"{parts.scheme}://{host}…: the address of a server ends with its path, without ? and #")
        place = parts.netloc.rpartition("@")[2] + API_PATH.sub("", parts.path)
        root = f"{parts.scheme}://{parts.netloc}{API_PATH.sub('', parts.path)}"
        return Address(root, f"{parts.scheme}://{place}", parts.password, _secrets(parts), port, _is_local(host))


def read_key(file: str | None = None) -> str | None:
    """The key for a server: from a file, else from BARELOOP_API_KEY or OPENAI_API_KEY; None without one.

    Raises `BareloopError` for a file that cannot be read, or that has no key.
    """
    if file is None:
        name = key_variable()
        return None if name is None else os.environ[name].strip()
    try:
        key = local_path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text"
        raise BareloopError(f"cannot read the key in {file}: {reason}") from None
    if not key:
        raise BareloopError(f"{file} is empty; it needs the server's key in one line")
    return key


def key_variable() -> str | None:
    """The environment variable that `read_key` takes the key from; None if none is set."""
    return next((name for name in KEY_VARIABLES if os.environ.get(name, "").strip()), None)


def check_key(key: str) -> str:
    """Return the key. Raises `UsageError`, which does not show it, if it cannot stand in a header."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError("the key has characters that no key has; it is one line of ASCII without spaces")
    return key


def _secrets(parts: SplitResult) -> tuple[str, ...]:
    user, password = (unquote(part or "") for part in (parts.username, parts.password))
    if not user and not password:
        return ()
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()  # as in the header Authorization
    return tuple(secret for secret in (basic, parts.password, password) if secret)


def _hidden(url: str) -> str:
    """A malformed URL without what may be a password."""
    return re.sub(r"//[^/]*@", "//…@", url)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
