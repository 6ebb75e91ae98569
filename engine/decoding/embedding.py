"""Embeddings: texts -> vectors, in packed steps of a bounded number of tokens.

Texts of similar lengths share a step, the longest first. An encoder computes whole texts; a decoder also computes a
long one in pieces, as it does a prompt, and its vector is made of the hidden states that predict tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import State, Step
from engine.decoding.scoring import BATCH_TOKENS
from engine.decoding.sequence import Sequence as TokenSequence
from engine.decoding.sequence import check_ids, prefill
from engine.layers.linear import formats_of
from engine.models.family import Model
from engine.models.pooling import Pooling
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer

WINDOW = 8_192  # texts that are encoded, and sorted by length, at once


class Encoded(NamedTuple):
    """Token ids of texts, and how many texts were cut to the model's maximum."""

    rows: list[list[int]]
    truncated: int

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts."""
        return sum(map(len, self.rows))


class Embedder:
    """Embeds texts with one model. It may be used in several threads, as it keeps nothing between two calls."""

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        max_length: int,
        tokenizer: Tokenizer | None,
        new_sequence: Callable[[State], TokenSequence],
    ) -> None:
        """`max_length`: the model's window in tokens. `new_sequence`: an empty one in a state, for decoders."""
        self.model, self.pooling, self.tokenizer = model, pooling, tokenizer
        self.max_length = min(max_length, pooling.max_length or max_length)
        self._new_sequence = new_sequence
        if model.is_encoder and not pooling.is_declared:
            logging.getLogger("bareloop").warning(
                "%s has no modules.json, which says how texts are pooled: a vector is the mean over all tokens; if the "
                "model was published with that file, download it again, with all its files",
                model.source or "the encoder",
            )

    @property
    def size(self) -> int:
        """Number of dimensions of a vector."""
        return self.model.config.hidden_size

    @property
    def is_trained(self) -> bool:
        """Whether the checkpoint says how it embeds texts. If not, vectors are means of hidden states."""
        return self.pooling.is_declared

    def encode(self, texts: Sequence[str], before: int = 0, count: int | None = None) -> Encoded:
        """Token ids of texts, with the tokenizer's special tokens, cut to the model's maximum.

        `before`, `count`: the number of texts before these, and of all, for messages. Raises `BareloopError` for what
        is no text, and for a text without tokens.
        """
        count = len(texts) if count is None else count
        if self.tokenizer is None:
            raise BareloopError("this model has no tokenizer, so texts cannot be embedded")
        for number, text in enumerate(texts, before + 1):
            if not isinstance(text, str):
                raise BareloopError(f"text {number:,} of {count:,} is of type {type(text).__name__}, not text")
        prepared = [self.pooling.prepare(text) for text in texts]
        encoded = Encoded(*self.tokenizer.encode_truncated(prepared, self.max_length))
        for number, ids in enumerate(encoded.rows, before + 1):
            if not ids:
                raise BareloopError(f"text {number:,} of {count:,} has no tokens, so it cannot be embedded")
        return encoded

    def check(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise `BareloopError` unless each row has 1 to `max_length` ids of the vocabulary."""
        for ids in rows:
            if not 1 <= len(ids) <= self.max_length:
                raise BareloopError(f"a text to embed has 1 to {self.max_length:,} tokens, and one has {len(ids):,}")
            check_ids(ids, self.model.config.vocab_size)

    def embed(
        self, texts: Sequence[str], batch_tokens: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Texts -> float32 [n, D] on the CPU. `progress` is told how many texts each step has finished."""
        vectors = torch.empty(len(texts), self.size)
        for start in range(0, len(texts), WINDOW):
            rows = self.encode(texts[start : start + WINDOW], start, len(texts)).rows
            vectors[start : start + len(rows)] = self.vectors(rows, batch_tokens, progress)
        return vectors

    def vectors(
        self,
        rows: Sequence[Sequence[int]],
        batch_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """The same for token ids."""
        result = torch.empty(len(rows), self.size)
        for indices, vectors in self.steps(rows, batch_tokens):
            result[indices] = vectors
            if progress is not None and indices:
                progress(len(indices))
        return result

    def steps(
        self, rows: Sequence[Sequence[int]], batch_tokens: int | None = None
    ) -> Generator[tuple[list[int], Tensor]]:
        """Compute one step after the other: yield the indices of its texts, and their vectors [R, D] on the CPU.

        A step has up to `batch_tokens` tokens, or one longer text of an encoder. A decoder's longer text takes several
        steps, the first of which have no texts.
        """
        limit = BATCH_TOKENS[self.model.embed.weight.device.type] if batch_tokens is None else batch_tokens
        if limit < 1:
            raise BareloopError(f"batch_tokens is {limit}; use 1 or more")
        self.check(rows)
        for indices in plan([len(ids) for ids in rows], limit):
            chosen = [rows[index] for index in indices]
            if self.model.is_encoder:
                yield indices, self._finish(chosen, self._encode_step(chosen))
            else:
                yield indices, (yield from self._decoder_steps(chosen, limit))

    @torch.inference_mode()
    def _encode_step(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states of whole texts, end to end.

        On a CPU, products of few rows with quantized weights round otherwise than those of many, so that a text alone
        would have another vector than in a batch: copies of the last text, which are dropped, make them many.
        """
        device, tokens = self.model.embed.weight.device, sum(map(len, rows))
        copies = 0
        if device.type == "cpu" and tokens <= kernels.MAX_ROWS and formats_of(self.model):
            copies = (kernels.MAX_ROWS - tokens) // len(rows[-1]) + 1
        hidden: Tensor = self.model(Step.pack([*rows, *[rows[-1]] * copies], device=device))
        return hidden[:tokens]

    def _decoder_steps(
        self, rows: Sequence[Sequence[int]], limit: int
    ) -> Generator[tuple[list[int], Tensor], None, Tensor]:
        """Several texts, or one in pieces of `limit` tokens: return their vectors when the state has been released."""
        state = self.model.new_state()
        sequences = [self._new_sequence(state) for _ in rows]
        pieces: list[Tensor] = []
        longest = max(map(len, rows))
        size = limit if len(rows) == 1 else longest
        try:
            for start in range(0, longest, size):
                parts = [ids[: start + size] for ids in rows]
                pieces += prefill(sequences, parts, [len(ids) - start for ids in parts], limit)[1]
                if start + size < longest:
                    yield [], torch.empty(0, self.size)
            return self._finish(rows, torch.cat(pieces))
        finally:
            for sequence in sequences:
                sequence.close()

    @torch.inference_mode()
    def _finish(self, rows: Sequence[Sequence[int]], hidden: Tensor) -> Tensor:
        """Pool hidden states. Raises `BareloopError` if they are not finite."""
        vectors = self.pooling.pool(hidden, [len(ids) for ids in rows]).cpu()
        if not bool(torch.isfinite(vectors).all()):
            name = dtype_name(self.model.dtype)
            raise BareloopError(f"an embedding is not finite in {name}; use --dtype float32, or check the weights")
        return vectors


def plan(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Group texts by length, the longest first: yield indices of up to `limit` tokens, or of one longer text."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    step: list[int] = []
    tokens = 0
    for index in order:
        if step and tokens + lengths[index] > limit:
            yield step
            step, tokens = [], 0
        step.append(index)
        tokens += lengths[index]
    if step:
        yield step


def json_arrays(vectors: Tensor) -> Iterator[str]:
    """The JSON array of each vector [n, D], with the digits that give the same float32 again.

    One call formats a vector: a third of the time of `json.dumps`, which writes the digits of a float64.
    """
    template = f"[{','.join(['%.9g'] * vectors.shape[1])}]"
    for vector in vectors:
        yield template % tuple(vector.tolist())
