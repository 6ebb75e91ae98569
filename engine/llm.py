"""LLM: a model, its tokenizer and its loop under one name."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import State
from engine.checkpoints.hub import TOKENIZER_FILES
from engine.checkpoints.loading import initialize_weights, load_weights
from engine.checkpoints.opening import open_model
from engine.checkpoints.quantized import declaration, is_quantized
from engine.checkpoints.saving import save_model
from engine.decoding.loop import Event, decode
from engine.decoding.loop import Sequence as TokenSequence
from engine.decoding.sampling import SamplingParams
from engine.decoding.scoring import BATCH_TOKENS, Score, Scorer
from engine.layers.linear import Linear
from engine.models import configure
from engine.models.config import ModelConfig
from engine.models.config_reader import token_ids
from engine.models.family import Family, Model
from engine.runtime.device import choose_device, choose_dtype, dtype_name
from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path, read_json
from engine.runtime.memory import free_memory, keep_freed_memory
from engine.text.chat_template import ChatTemplate, Message
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Usage:
    """Tokens of one call."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt; `text` is None for a model without a tokenizer."""

    text: str | None
    token_ids: list[int]  # without the prompt; with the token that ended it
    logprobs: list[float] | None  # of each token, if asked for
    finish_reason: str  # "stop" (a token or string that ends a text) or "length"
    usage: Usage


class LLM:
    """A loaded model. Make one with `LLM.load` (a checkpoint) or `LLM.from_config` (random weights)."""

    def __init__(
        self, model: Model, family: Family, config: ModelConfig, folder: Path | None, quant: str = "none"
    ) -> None:
        self.model = model
        self.quant = quant
        self.family = family
        self.config = config
        self.folder = folder
        if self.device.type == "cpu":
            keep_freed_memory()
            kernels.start()

    @staticmethod
    def load(
        name: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        quant: str = "none",
        allow_pickle: bool = False,
    ) -> LLM:
        """Load a folder in Hugging Face layout, or a hub repository by its id.

        `device`: auto, cpu, cuda, cuda:N, mps. `dtype`: auto (as stored), float32, bfloat16, float16.
        `quant`: the weight format (`engine.quant.QUANTS`), of matrices that are quantized while they are read.
        `allow_pickle`: read a checkpoint that has only `pytorch_model.bin`, its tensors and nothing else.
        Raises `BareloopError` with one line for whatever is wrong with any of it.
        """
        where = choose_device(device)
        opened = open_model(name, dtype, allow_pickle, quant, where)
        load_weights(opened, where)
        return LLM(opened.model, opened.family, opened.config, opened.folder, opened.quant)

    @staticmethod
    def from_config(config: Mapping[str, Any], seed: int = 0, device: str = "auto", dtype: str = "float32") -> LLM:
        """A model with seeded random weights, ready to train; `config` is what config.json would hold."""
        family, parsed = configure(config)
        with torch.device("meta"):
            model = family.build(parsed)
        initialize_weights(
            model, family, parsed.initializer_range, seed, choose_dtype(dtype, "float32"), choose_device(device)
        )
        return LLM(model, family, parsed, None)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; raises one line where it has none."""
        if self.folder is None:
            raise BareloopError("a model made from a config has no tokenizer; give and take token ids")
        return Tokenizer.load(self.folder)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template; raises one line where it has none."""
        tokenizer = self.tokenizer
        assert self.folder is not None  # or there were no tokenizer
        return ChatTemplate.load(self.folder, tokenizer)

    @cached_property
    def default_params(self) -> Mapping[str, Any]:
        """generation_config.json as it stands, empty where there is none. No call follows it by itself."""
        path = self.folder / "generation_config.json" if self.folder else None
        return read_json(path) if path and path.exists() else {}

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text, from config.json and generation_config.json."""
        more = token_ids(self.default_params.get("eos_token_id"), "generation_config.json: eos_token_id")
        return tuple(dict.fromkeys((*self.config.eos_token_ids, *more)))

    @property
    def max_length(self) -> int:
        """Tokens that the window holds."""
        return self.config.max_position_embeddings

    def affordable_length(self) -> int:
        """Tokens of the longest sequence that the window and the free memory hold, now.

        Its keys and values are there twice while their room grows.
        """
        free = free_memory(self.device)
        if free is None:
            return self.max_length
        state = self.model.new_state()
        return max(1, bisect_right(range(1, self.max_length + 1), free, key=lambda n: 2 * state.row_bytes(n)))

    def sequence(self, state: State | None = None) -> TokenSequence:
        """An empty sequence, with a state of its own unless it shares one with others."""
        tokenizer = self.tokenizer if self.folder and Tokenizer.is_in(self.folder) else None
        state = self.model.new_state() if state is None else state
        return TokenSequence(self.model, state, self.max_length, self.eos_token_ids, tokenizer)

    def fed(self, prompts: Sequence[Sequence[int]]) -> list[TokenSequence]:
        """A sequence for each prompt, fed, all of one state: ready to decode together."""
        state = self.model.new_state()
        sequences = [self.sequence(state) for _ in prompts]
        for sequence, ids in zip(sequences, prompts, strict=True):  # each alone, so that none changes another's bits
            sequence.feed(ids)
        return sequences

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The ids of a prompt; ids stay as they are."""
        if not isinstance(prompt, str | list | tuple):
            raise BareloopError(f"a prompt is text or a list of token ids, not {type(prompt).__name__}")
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Continue every prompt (text or token ids), all together; one `Completion` each, in their order."""
        if isinstance(prompts, str):
            raise BareloopError("generate takes a list of prompts: generate([text])")
        return self._generate([self.encode(prompt) for prompt in prompts], params or SamplingParams(), continues=True)

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """The next answer in a conversation of {"role": …, "content": …}, by the checkpoint's own template.

        A last message of the assistant's is the beginning of the answer, which goes on from there.
        """
        ids = self.chat_template.encode(messages)
        continues = bool(messages) and messages[-1].get("role") == "assistant"
        return self._generate([ids], params or SamplingParams(), continues)[0]

    def _generate(self, ids: list[list[int]], params: SamplingParams, continues: bool) -> list[Completion]:
        sequences = self.fed(ids)
        events: list[list[Event]] = [[] for _ in ids]
        for event in decode(sequences, params, continues):
            events[event.sequence].append(event)
        return [
            Completion(
                text="".join(event.text for event in own) if sequence.tokenizer else None,
                token_ids=[event.token_id for event in own],
                logprobs=[e.logprob for e in own if e.logprob is not None] if params.logprobs else None,
                finish_reason=str(own[-1].finish_reason),
                usage=Usage(len(prompt), len(own)),
            )
            for sequence, prompt, own in zip(sequences, ids, events, strict=True)
        ]

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[Event]:
        """Continue one prompt, an `Event` for each token as it comes. Leave whenever you like."""
        sequence = self.sequence()
        sequence.feed(self.encode(prompt))
        yield from sequence.decode(params or SamplingParams())

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The scores of every next token: float32 [time, vocab], on the CPU."""
        sequence = self.sequence()
        return sequence.read(self.encode(ids), last=len(ids)).float().cpu()

    def score(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], batch_tokens: int | None = None
    ) -> list[Score]:
        """Log-likelihoods of (context ids, continuation ids), neither empty, as lm-evaluation-harness takes them.

        Of a pair that is too long the last `max_length + 1` tokens are kept. The log-softmax is taken, and
        summed, in the model's dtype. What requests share is computed once (neighbours with one context, and the
        beginnings of contexts); `batch_tokens` bounds the tokens of one forward.
        """
        pairs = [(self.encode(context), self.encode(continuation)) for context, continuation in requests]
        questions = [list(group) for _, group in groupby(pairs, key=lambda pair: pair[0])]
        scorer = self.scorer(batch_tokens)
        scores: dict[int, list[Score]] = {}
        for batch in scorer.plan(questions):
            scores |= zip((prompt.place for prompt in batch.prompts), scorer.score(batch), strict=True)
        return [score for place in range(len(questions)) for score in scores[place]]

    def scorer(self, batch_tokens: int | None = None) -> Scorer:
        """What `score` uses: it plans, then scores a batch at a time, for long work that is saved as it goes."""
        return Scorer(self.sequence, BATCH_TOKENS[self.device.type] if batch_tokens is None else batch_tokens)

    def pack(self) -> None:
        """Make ready for long scoring on a CPU: its kernels are there from the first question to the last, and its
        weights in blocks (see `Linear.pack`), where the memory for it is free twice over.
        """
        if self.device.type == "cpu":
            kernels.wait()
        layers = [module for module in self.model.modules() if isinstance(module, Linear)]
        layers = [layer for layer in layers if layer is not self.model.head]  # which sees few rows
        free = free_memory(self.device)
        if free is not None and free > 2 * sum(layer.weight.nbytes for layer in layers):
            for layer in layers:
                layer.pack()

    def save(self, folder: str | Path) -> None:
        """Write a folder that this engine and transformers load; it must be new or empty.

        That of a quantized model only this engine loads, in the time that reading takes.
        """
        raw = {**self.config.raw, "dtype": dtype_name(self.dtype)}
        raw.pop("torch_dtype", None)
        if is_quantized(self.model):
            raw["quantization_config"] = declaration(self.model, self.quant)
        names = (*TOKENIZER_FILES, "generation_config.json") if self.folder else ()
        paths = {name: self.folder / name for name in names if self.folder and (self.folder / name).exists()}
        files = {name: path.read_bytes() for name, path in paths.items()}
        save_model(self.model, self.family, raw, local_path(folder), files)
