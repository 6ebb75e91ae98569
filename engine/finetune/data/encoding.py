"""Rows as examples: encoded in batches, cut to a length, and counted where that loses something."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from engine.cli.progress import Progress
from engine.finetune.data.chat import encode_conversation
from engine.finetune.data.example import Example
from engine.finetune.data.rows import Conversation, Prompted, Row, Text
from engine.runtime.errors import BareloopError

if TYPE_CHECKING:
    from engine.llm import LLM
    from engine.text.chat_template import ChatTemplate

CHUNK = 1_000  # rows that are encoded together
NOW = datetime(2026, 1, 1)  # what templates print as the date: with today's, no run could be resumed tomorrow
PATIENCE = 2.0  # seconds of work after which progress is shown


class Encoder:
    """Encodes rows for one model. `counts`: what was cut, skipped or split, for `notes`."""

    def __init__(self, llm: LLM, max_length: int, mask_prompt: bool) -> None:
        self.llm = llm
        self.tokenizer = llm.tokenizer
        self.max_length = max_length
        self.mask_prompt = mask_prompt
        self.eos_ids = frozenset(llm.eos_token_ids)
        named = self.tokenizer.token_id(self.tokenizer.special_tokens.get("eos_token", ""))
        self.eos = named if named in self.eos_ids else next(iter(llm.eos_token_ids), None)
        self.counts: Counter[str] = Counter()

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template at a fixed time. Raises `BareloopError` if it has none."""
        try:
            template = self.llm.chat_template
        except BareloopError as error:
            raise BareloopError(
                f"{error}; messages need a template: use an instruct model, or rows of prompt and completion, or text"
            ) from None
        return template.at(NOW)

    def encode(self, rows: Sequence[Row], place: Callable[[int], str]) -> list[Example]:
        """The examples of all rows, in their order. `place(i)` names row i in messages."""
        result: list[Example] = []
        start = time.monotonic()
        with ExitStack() as stack:
            progress: Progress | None = None
            for first in range(0, len(rows), CHUNK):
                chunk = rows[first : first + CHUNK]
                for examples in self._encode_chunk(chunk, first, place):
                    result += examples
                if progress is not None:
                    progress.advance(len(chunk))
                elif time.monotonic() - start > PATIENCE and first + CHUNK < len(rows):
                    progress = stack.enter_context(Progress("encoding", len(rows), first + len(chunk)))
        return result

    def _encode_chunk(self, rows: Sequence[Row], first: int, place: Callable[[int], str]) -> list[list[Example]]:
        result: list[list[Example]] = [[] for _ in rows]
        prompted = [(i, row.prompt, row.completion) for i, row in enumerate(rows) if isinstance(row, Prompted)]
        prompts = self.tokenizer.encode_all([prompt for _, prompt, _ in prompted])
        completions = self.tokenizer.encode_continuations([(prompt, text) for _, prompt, text in prompted])
        for (index, _, _), prompt, completion in zip(prompted, prompts, completions, strict=True):
            result[index] = self._fit([self._prompted(prompt, completion)])
        texts = [(i, row.text) for i, row in enumerate(rows) if isinstance(row, Text)]
        for (index, _), ids in zip(texts, self.tokenizer.encode_all([text for _, text in texts]), strict=True):
            result[index] = self._pieces(ids)
        for index, row in enumerate(rows):
            if isinstance(row, Conversation):
                try:
                    result[index] = self._fit(self._conversation(row))
                except BareloopError as error:
                    raise BareloopError(f"{place(first + index)}: {error}") from None
        return result

    def _prompted(self, prompt: list[int], completion: list[int]) -> Example:
        """A prompt as the engine encodes it, a completion without special tokens, and EOS."""
        answer = self._with_eos(completion)
        learned = [not self.mask_prompt] * len(prompt) + [True] * len(answer)
        return Example([*prompt, *answer], [False, *learned[1:]])

    def _conversation(self, row: Conversation) -> list[Example]:
        examples, dropped = encode_conversation(row, self.template, self.eos, self.eos_ids, self.mask_prompt)
        self.counts["with tools"] += row.has_tools
        if not examples:
            self.counts["off template"] += 1
        elif dropped:
            self.counts["dropped replies"] += dropped
        if len(examples) > 1:
            self.counts["split conversations"] += 1
            self.counts["parts of conversations"] += len(examples)
        return examples

    def _with_eos(self, ids: list[int]) -> list[int]:
        return ids if self.eos is None or ids[-1:] == [self.eos] else [*ids, self.eos]

    def _fit(self, examples: Sequence[Example]) -> list[Example]:
        """The examples, cut at the right to `max_length`; without those of which nothing learned remains."""
        result = []
        for example in examples:
            self.counts["examples"] += 1
            ids, learned = example.ids[: self.max_length], example.learned[: self.max_length]
            if not any(learned):
                self.counts["skipped"] += 1
                continue
            self.counts["cut"] += len(ids) < len(example.ids)
            result.append(self._checked(ids, learned))
        return result

    def _pieces(self, ids: list[int]) -> list[Example]:
        """A text, of which all is learned but its first token: pieces of at most `max_length` tokens.

        Each begins with the last token of the one before, so that no other token goes unlearned.
        """
        ids = self._with_eos(ids)
        starts = range(0, max(1, len(ids) - 1), self.max_length - 1)
        pieces = [ids[start : start + self.max_length] for start in starts]
        self.counts["examples"] += len(pieces)
        if len(pieces) > 1:
            self.counts["split texts"] += 1
            self.counts["pieces of texts"] += len(pieces)
        elif len(ids) < 2:
            self.counts["skipped"] += 1
            return []
        return [self._checked(piece, [False] + [True] * (len(piece) - 1)) for piece in pieces]

    def _checked(self, ids: Sequence[int], learned: Sequence[int]) -> Example:
        if max(ids) >= self.llm.config.vocab_size:
            raise BareloopError(
                f"the tokenizer's token {max(ids)} is beyond the model's vocabulary of {self.llm.config.vocab_size}; "
                "use the tokenizer of this model"
            )
        return Example(array("i", ids), bytes(learned))

    def notes(self) -> list[str]:
        """A line for each kind of loss or change."""
        counts = self.counts
        notes = []
        total, longest = f"{counts['examples']:,} examples", f"{self.max_length:,} tokens"
        if counts["cut"] or counts["skipped"]:
            skipped = f"{counts['skipped']:,} skipped, as nothing learned remains"
            notes.append(f"{counts['cut']:,} of {total} were cut to {longest}, {skipped}")
        if counts["split texts"]:
            pieces = f"{counts['pieces of texts']:,} pieces of at most {longest}"
            notes.append(f"texts longer than that became pieces: {counts['split texts']:,} became {pieces}")
        if counts["split conversations"]:
            parts = f"{counts['parts of conversations']:,} examples"
            notes.append(
                f"{counts['split conversations']:,} conversations became {parts}: earlier replies have other tokens in "
                "the prompt of a later one"
            )
        if counts["off template"]:
            notes.append(
                f"{counts['off template']:,} conversations skipped: their replies do not follow the prompt that the "
                "chat template writes before a reply"
            )
        if counts["dropped replies"]:
            notes.append(
                f"{counts['dropped replies']:,} replies of other conversations are only context: they do not follow "
                "the prompt that the chat template writes before a reply"
            )
        if counts["with tools"]:
            notes.append(f"the tools of {counts['with tools']:,} conversations are left out")
        if self.eos is None:
            notes.append(
                "the model names no end-of-text token, so it cannot learn to stop; add eos_token_id to its config.json"
            )
        return notes
