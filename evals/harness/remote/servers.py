"""Questions to OpenAI-compatible servers, as lm-evaluation-harness's local-completions asks them.

A choice is scored by /v1/completions with `echo` and `logprobs`: the log-probabilities of its tokens, which a server
returns with one more token than the prompt has. The prompts of a question's choices are sent together, as token ids.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.remote.client import RemoteModel
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError, UsageError
from evals.harness.dispatch import Dispatcher
from evals.harness.evaluate import Blocks, answer_missing, load_template
from evals.harness.generation import answer_record, eos_texts
from evals.harness.identity import make_remote_header, run_path
from evals.harness.likelihood import make_record
from evals.harness.prompts import Render, TextEncoder, encode_pairs, encoder
from evals.harness.remote.answers import choices_of, computed_tokens, count_of, read_score
from evals.harness.remote.connection import ServerTokenizer, connect, find_tokenizer, server_template
from evals.harness.task import Item, Task
from evals.runs.run_file import REMOTE

MAX_LENGTH = 2_048  # tokens, if a server does not tell; lm-evaluation-harness's default
CONCURRENCY = 4  # questions at a time per server


def evaluate_remote(task: Task, options: Any, name: str) -> Path:
    """Evaluate the missing questions of a task with a model of the servers. Return the path of the run file."""
    clients = connect(options, name)
    try:
        return answer_missing(task, options, Servers(task, options, name, clients))
    finally:
        for client in clients:
            client.close()


class Servers:
    """One model on one or several servers, which answer the questions of a task."""

    def __init__(self, task: Task, options: Any, name: str, clients: Sequence[RemoteModel]) -> None:
        self.task, self.options, self.clients = task, options, clients
        self.info = clients[0].tokenizer_info()
        self.tokenizers = self._find_tokenizers()
        self.tokenizer = self.tokenizers.get(clients[0])
        lengths = [] if options.max_length else [client.max_length() for client in clients]
        known = [length for length in lengths if length is not None]
        self.max_length = options.max_length or min(known, default=MAX_LENGTH)
        self.path = run_path(task, options, name, REMOTE)
        self.header = make_remote_header(task, options, name, self.max_length, [client.url for client in clients])
        self._refused: set[str] = set()  # fields that are not OpenAI's, and that a server has refused

    def render(self, now: datetime | None = None) -> Render | None:
        if not self.options.chat_template:
            return None
        if self.options.tokenizer is not None:
            return load_template(find_tokenizer(self.options.tokenizer), now)
        return server_template(self.clients[0], self.info, now)

    def status(self) -> str:
        return ""

    def answer(self, blocks: Blocks) -> Iterator[Sequence[dict[str, Any]]]:
        def ask(client: RemoteModel, question: tuple[Any, Item]) -> Iterator[dict[str, Any]]:
            record = (self._score if self.task.generation is None else self._generate)(client, *question)
            yield {**record, "url": client.url}

        def report(client: RemoteModel, error: RemoteError) -> None:
            print(f"going on without {client.url}: {error}", file=sys.stderr, flush=True)

        wanted = ([(row, item) for row, item in block if item.key in blocks.missing] for block in blocks)
        concurrency = self.options.concurrency or CONCURRENCY
        for record, seconds in Dispatcher(wanted, self.clients, concurrency, ask, report):
            record["times"]["real"] = round(seconds, 6)
            yield [record]

    def _find_tokenizers(self) -> dict[RemoteModel, TextEncoder]:
        """The tokenizer for each server: that of --tokenizer, or its own. Empty if prompts are sent as text."""
        if self.options.tokenizer is not None:
            from engine.text.tokenizer import Tokenizer

            return dict.fromkeys(self.clients, Tokenizer.load(find_tokenizer(self.options.tokenizer)))
        without = [client.url for client in self.clients if client.tokenize("a") is None]
        if not without:
            return {client: ServerTokenizer(client, self.info) for client in self.clients}
        if self.task.generation is not None and not self.options.chat_template:
            return {}
        raise UsageError(f"{without[0]} has no /tokenize; name the model's tokenizer with --tokenizer FOLDER-or-hub-id")

    def _score(self, client: RemoteModel, row: Any, item: Item) -> dict[str, Any]:
        """Score the choices of a question."""
        prompts, lengths, truncated = [], [], False
        for choice, (context, continuation) in enumerate(encode_pairs(encoder(self.tokenizers[client]), item.requests)):
            whole = [*context, *continuation]
            prompt = whole[-(self.max_length - 1) :]  # a place is left for the token that is generated
            if not context or not 1 <= len(continuation) < len(prompt):
                raise BareloopError(
                    f"cannot score choice {choice} of {item.subject} {item.index}: it has {len(continuation)} tokens "
                    f"after a context of {len(context)}; use data whose choices have 1 to {self.max_length - 2:,}"
                )
            prompts.append(prompt)
            lengths.append(len(continuation))
            truncated |= len(prompt) < len(whole)
        request = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        answer = client.complete(request)
        choices = choices_of(client, answer, len(prompts))
        scores = [read_score(client, *parts) for parts in zip(choices, map(len, prompts), lengths, strict=True)]
        tokens = sum(map(len, prompts))
        return make_record(self.task, row, item, scores, tokens, truncated, computed_tokens(answer))

    def _generate(self, client: RemoteModel, row: Any, item: Item) -> dict[str, Any]:
        """Generate the answer to a question."""
        generation = self.task.generation
        assert generation is not None
        text = item.requests[0][0]
        prompt: str | list[int] = text
        stop, truncated = [*generation.until], False
        extras: dict[str, Any] = {"repetition_penalty": 1.0}  # which some servers take from generation_config.json
        if (tokenizer := self.tokenizers.get(client)) is not None:
            (ids,) = encoder(tokenizer)([text])
            prompt = ids[-(self.max_length - generation.max_new_tokens) :]
            truncated = len(prompt) < len(ids)
            stop += eos_texts(tokenizer)
            control = getattr(tokenizer, "control_tokens", {})  # their text is not part of the output
            extras |= {"stop_token_ids": ids} if (ids := [control[end] for end in stop if end in control]) else {}
        request = {"prompt": prompt, "max_tokens": generation.max_new_tokens, "temperature": 0}
        answer = self._complete(client, request | {"stop": list(dict.fromkeys(stop))}, extras)
        (choice,) = choices_of(client, answer, 1)
        if not isinstance(choice.get("text"), str):
            raise RemoteError(f"{client.url} answered without a text")
        usage = answer.get("usage") or {}
        tokens = len(prompt) if isinstance(prompt, list) else max(count_of(usage, "prompt_tokens") or 0, 1)
        reason, new_tokens = str(choice.get("finish_reason") or "stop"), count_of(usage, "completion_tokens") or 0
        times = computed_tokens(answer)
        return answer_record(generation, row, item, choice["text"], reason, new_tokens, times, tokens, truncated)

    def _complete(self, client: RemoteModel, request: dict[str, Any], extras: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request with fields that are not OpenAI's, as far as the server does not refuse them."""
        while True:
            sent = {name: value for name, value in extras.items() if name not in self._refused}
            try:
                return client.complete(request | sent)
            except RemoteError as error:
                refused = {name for name in sent if name in str(error)}
                if error.status not in (400, 422) or not refused:
                    raise
                self._refused |= refused
