"""Servers, with what they tell of their model: its name, its tokenizer, its chat template."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.remote.address import read_key
from engine.remote.client import RemoteModel
from engine.remote.errors import RemoteError
from engine.runtime.errors import UsageError, quote
from engine.runtime.files import local_path
from evals.harness.evaluate import load_template
from evals.harness.prompts import Render


def connect(options: Any, name: str | None) -> list[RemoteModel]:
    """Return a client for each of the servers that can be reached and have the model; report the others on stderr.

    Raises `RemoteError` if there is none.
    """
    key = read_key(options.api_key_file)
    clients: list[RemoteModel] = []
    failures: list[RemoteError] = []
    for url in dict.fromkeys(options.url):
        client = RemoteModel(url, name, key)
        try:
            client.check()
        except RemoteError as error:
            failures.append(error)
            client.close()
        else:
            clients.append(client)
    if not clients:
        raise failures[0]
    for failure in failures:
        print(f"going on without a server: {failure}", file=sys.stderr)
    return clients


def choose_remote_model(options: Any) -> None:
    """Select the servers' model if --model names none. Raises `UsageError` if they have several."""
    if options.model:
        return
    clients = connect(options, None)
    try:
        options.model = [only_model(clients[0])]
    finally:
        for client in clients:
            client.close()


def only_model(client: RemoteModel, flag: str = "-m") -> str:
    """Return the name of a server's only model. Raises `UsageError` if it has several; `flag` then names one."""
    names = client.names()
    if len(names) != 1:
        raise UsageError(f"{client.url} has {len(names)} models; name one with {flag}: {', '.join(map(quote, names))}")
    return names[0]


def load_remote_template(options: Any, name: str, now: datetime | None = None) -> Render:
    """Return the chat template of --tokenizer, or of the first server that can be reached."""
    if options.tokenizer is not None:
        return load_template(find_tokenizer(options.tokenizer), now)
    clients = connect(options, name)
    try:
        return server_template(clients[0], clients[0].tokenizer_info(), now)
    finally:
        for client in clients:
            client.close()


def server_template(client: RemoteModel, info: Mapping[str, Any] | None, now: datetime | None) -> Render:
    """Return the chat template in a server's description of its tokenizer."""
    import tokenizers

    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer

    source = (info or {}).get("chat_template")
    if not isinstance(source, str):
        raise RemoteError(f"{client.url} does not tell its chat template; name the model's tokenizer with --tokenizer")
    # rendering needs a tokenizer's special tokens only
    names_only = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({}, "")), dict(info or {}))
    return ChatTemplate(source, names_only, now).render


def find_tokenizer(name: str) -> Path:
    """The folder of --tokenizer."""
    from engine.text.tokenizer import Tokenizer

    folder = local_path(name)
    if Tokenizer.is_in(folder):
        return folder
    from engine.checkpoints import hub  # which loads torch

    return hub.find_tokenizer(name)


class ServerTokenizer:
    """The tokenizer of a server, asked for each text."""

    def __init__(self, client: RemoteModel, info: Mapping[str, Any] | None) -> None:
        self.client = client
        named = {role: (info or {}).get(role) for role in ("bos_token", "eos_token")}
        texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in named.items()}
        self.special_tokens = {role: text for role, text in texts.items() if isinstance(text, str) and text}

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        return [self._encode(text, add_special_tokens) for text in texts]

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = self.client.tokenize(text, add_special_tokens)
        if ids is None:
            raise RemoteError(f"{self.client.url} has no /tokenize any more")
        return ids
