"""Servers that answer and that judge: their keys, and the name of an only model. No torch."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from engine.remote.address import Address, read_key


def answer_key(options: Any) -> str:
    """Return the key for the server of --url; "" for none.

    The environment's key goes to one server: where the judge is on another host and has no key file, to the judge.
    """
    judge = options.judge_url
    is_of_judge = judge is not None and options.judge_api_key_file is None and _host(judge) != _host(options.url[0])
    return "" if is_of_judge and options.api_key_file is None else read_key(options.api_key_file) or ""


def judge_key(options: Any) -> str:
    """Return the key for the server of --judge-url; "" for none."""
    return read_key(options.judge_api_key_file) or ""


def only_model_of(url: str, key: str, flag: str) -> str:
    """Return the name of a server's only model. Raises `UsageError` if it has several; `flag` then names one."""
    from engine.remote.client import RemoteModel
    from evals.harness.remote.connection import only_model

    with RemoteModel(url, None, key) as client:
        return only_model(client, flag)


def is_local(url: str) -> bool:
    """Whether a server is on this machine."""
    return Address.parse(url).is_local


def _host(url: str) -> str | None:
    return urlsplit(Address.parse(url).root).hostname
