"""LLM: a model, its tokenizer and its loop under one name."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import State
from engine.checkpoints.loading import initialize_weights, load_weights
from engine.checkpoints.opening import open_model
from engine.checkpoints.pooling import read_pooling
from engine.checkpoints.saving import save_folder
from engine.decoding.completion import Completion, completion_of
from engine.decoding.drafting import check_draft
from engine.decoding.embedding import Embedder
from engine.decoding.images import ImageLibrary, PromptImages
from engine.decoding.loop import Event, check_params
from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.scheduler import Scheduler
from engine.decoding.scheduling.states import GPU_MEMORY, SchedulerStates, check_share
from engine.decoding.scoring import BATCH_TOKENS, Score, Scorer
from engine.decoding.sequence import PREFILL_CHUNK, check_prompt
from engine.decoding.sequence import Sequence as TokenSequence
from engine.decoding.speculation import DraftModel, PromptLookup, Speculator
from engine.models import configure
from engine.models.config import ModelConfig
from engine.models.config_reader import token_ids
from engine.models.family import Family, Model
from engine.models.pooling import Pooling
from engine.models.vision.smolvlm import SmolVLM
from engine.quant import AUTO
from engine.runtime.device import choose_device, choose_dtype
from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path, read_json
from engine.runtime.memory import keep_freed_memory
from engine.text.chat_template import ChatTemplate, Message
from engine.text.tokenizer import Tokenizer

PROMPT: Literal["prompt"] = "prompt"  # a draft: what followed the last tokens before


class LLM:
    """A loaded model. Create one with `LLM.load` (a checkpoint) or `LLM.from_config` (random weights)."""

    def __init__(
        self, model: Model, family: Family, config: ModelConfig, folder: Path | None, quant: str = "none"
    ) -> None:
        self.model = model
        self.quant = quant
        self.family = family
        self.config = config
        self.folder = folder
        self.adapter: Path | None = None  # folder of the adapter that was loaded
        self.copies = 1  # processes on this machine that load the model
        self.draft: LLM | Literal["prompt"] | None = None  # what drafts tokens, see `load`
        self.states = SchedulerStates(model)
        model.source = str(folder or family.model_type)
        if self.device.type == "cpu":
            keep_freed_memory()
            kernels.start()

    @staticmethod
    def load(
        name: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        quant: str = AUTO,
        allow_pickle: bool = False,
        draft: str | Path | None = None,
        gpu_memory: float = GPU_MEMORY,
        cuda_graphs: bool = True,
        adapter: str | Path | None = None,
        copies: int = 1,
    ) -> LLM:
        """Load a folder in Hugging Face layout, or a hub repository by its id; `demo` is the embedded model.

        An adapter's is a model, too: the base model that its config names, with it.
        `device`: auto, cpu, cuda, cuda:N, mps. `dtype`: auto (as stored), float32, bfloat16, float16.
        `quant`: the weight format (one of `engine.quant.QUANTS`); matrices are quantized while they are read. `auto`:
        as the file is; a GGUF file keeps its blocks on a CPU with the C++ kernels, any other model is not quantized.
        `allow_pickle`: read a checkpoint that has only `pytorch_model.bin`, with torch's weights-only unpickler.
        `draft`: decode speculatively, with the same text: `prompt` drafts what followed the last tokens before, a
        model's name drafts with that model, which has the same vocabulary.
        `gpu_memory`: share of the GPU memory that is free after loading, which a scheduler allocates for keys and
        values. `cuda_graphs`: launch the kernels of a decoding step at once.
        `adapter`: folder or hub id of a LoRA adapter in peft's files. It is merged into float32 weights, and kept
        beside others, whose rounding would lose some of it. A draft model does not get it.
        `copies`: processes on this machine that load this model; they share mapped weights if memory is short.
        Raises `BareloopError` with one line for every bad input.
        """
        check_share(gpu_memory)
        torch_device = choose_device(device)
        opened = open_model(name, dtype, allow_pickle, quant, torch_device, adapter)
        drafter: LLM | Literal["prompt"] | None = None
        if draft is not None:  # loaded first, as it is the smaller one, and its name may be wrong
            drafter = PROMPT if draft == PROMPT else LLM.load(draft, device, dtype, quant, allow_pickle)
        load_weights(opened, torch_device, copies)
        llm = LLM(opened.model, opened.family, opened.config, opened.folder, opened.quant)
        llm.draft, llm.states = drafter, SchedulerStates(opened.model, gpu_memory, cuda_graphs)
        llm.adapter, llm.copies = opened.adapter, copies
        llm.model.source += "" if adapter is None else f" + {llm.adapter}"
        llm.check_draft()
        return llm

    @staticmethod
    def from_config(config: Mapping[str, Any], seed: int = 0, device: str = "auto", dtype: str = "float32") -> LLM:
        """Create a model with seeded random weights, ready to train. `config`: the content of a config.json."""
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
        """The checkpoint's tokenizer. Raises `BareloopError` if it has none."""
        if self.folder is None:
            raise BareloopError("a model created from a config has no tokenizer; use token ids")
        return Tokenizer.load(self.folder)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template. Raises `BareloopError` if it has none."""
        tokenizer = self.tokenizer
        assert self.folder is not None  # a model with a tokenizer was loaded from a folder
        return ChatTemplate.load(self.folder, tokenizer, images=self.images)

    @cached_property
    def images(self) -> ImageLibrary | None:
        """The images of prompts. None for a model that takes none, or has no tokenizer."""
        if not isinstance(self.model, SmolVLM) or self.folder is None or not self.has_tokenizer:
            return None
        library: ImageLibrary = vars(self).setdefault("images", ImageLibrary(self.model, self.folder, self.tokenizer))
        return library  # the same one for all threads, whichever was first

    @cached_property
    def default_params(self) -> Mapping[str, Any]:
        """The content of generation_config.json, or empty. Calls do not use it; the programs do."""
        path = self.folder / "generation_config.json" if self.folder else None
        return read_json(path) if path and path.exists() else {}

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text, from config.json and generation_config.json."""
        additional = token_ids(self.default_params.get("eos_token_id"), "generation_config.json: eos_token_id")
        return tuple(dict.fromkeys((*self.config.eos_token_ids, *additional)))

    @property
    def max_length(self) -> int:
        """Size of the window in tokens."""
        return self.config.max_position_embeddings

    def affordable_length(self) -> int:
        """Length in tokens of the longest sequence that fits into the window and the memory that is free now.

        Twice its cache is counted, as growing a segment copies it, and as another row may begin with it.
        """
        available = self.states.available_bytes()
        if available is None:
            return self.max_length
        state = self.model.new_state()
        return max(1, bisect_right(range(1, self.max_length + 1), available, key=lambda n: 2 * state.row_bytes(n)))

    @cached_property
    def has_tokenizer(self) -> bool:
        return self.folder is not None and Tokenizer.is_in(self.folder)

    @property
    def vocabulary(self) -> Mapping[str, int] | int:
        """The tokens with their ids; without a tokenizer their number."""
        return self.tokenizer.backend.get_vocab() if self.has_tokenizer else self.config.vocab_size

    def check_draft(self) -> None:
        """Raise `BareloopError` if tokens cannot be drafted for this model, or not by the model in `draft`."""
        if self.draft is not None:
            draft = self.draft if isinstance(self.draft, LLM) else None
            vocabularies = (0, 0) if draft is None else (self.vocabulary, draft.vocabulary)  # read only if they matter
            check_draft(self.model, vocabularies[0], None if draft is None else draft.model, vocabularies[1])

    def speculator(self) -> Speculator | None:
        """What drafts tokens for the replies of one scheduler; None without `draft`."""
        if self.draft is None:
            return None
        if isinstance(self.draft, LLM):
            draft = DraftModel(self.draft.model, self.draft.max_length, self.config.vocab_size)
            return Speculator(draft)
        return Speculator(PromptLookup())

    def sequence(self, state: State | None = None) -> TokenSequence:
        """An empty sequence, in a new state unless one is given."""
        tokenizer = self.tokenizer if self.has_tokenizer else None
        state = self.model.new_state() if state is None else state
        return TokenSequence(self.model, state, self.max_length, self.eos_token_ids, tokenizer, self.images)

    def prefilled_sequences(self, prompts: Sequence[Sequence[int]]) -> list[TokenSequence]:
        """One sequence per prompt, in one state, prefilled one by one and ready to decode together."""
        state = self.model.new_state()
        sequences = [self.sequence(state) for _ in prompts]
        for sequence, ids in zip(sequences, prompts, strict=True):
            sequence.feed(ids)
        return sequences

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt; ids are returned unchanged."""
        if not isinstance(prompt, str | list | tuple):
            raise BareloopError(f"a prompt is text or a list of token ids, not {type(prompt).__name__}")
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def scheduler(self) -> Scheduler:
        """A scheduler for prompts that arrive together. Large pieces take less time, and delay no other caller."""
        return Scheduler(self, prefill_chunk=None if self.device.type == "cuda" else PREFILL_CHUNK)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue all prompts (text or token ids): one `Completion` each, in their order.

        `params`: for all prompts, or one for each. With the C++ kernels, and in float32, a prompt's completion does not
        depend on the others.
        """
        if isinstance(prompts, str):
            raise BareloopError("generate takes a list of prompts: generate([text])")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise BareloopError(f"{len(prompts)} prompts and {len(each)} params; give one for all, or one for each")
        with self.scheduler() as scheduler:
            ids = [self.encode(prompt) for prompt in prompts]
            requests = [scheduler.submit(*pair) for pair in zip(ids, each, strict=True)]
            return [completion_of(request, self.has_tokenizer) for request in requests]

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """The reply to a conversation of {"role": …, "content": …}, in the checkpoint's chat template.

        A vision-language model takes images, too: {"content": [{"type": "image", "image": path or bytes}, {"type":
        "text", "text": …}]}. If the last message is the assistant's, the reply continues it.
        """
        continues = bool(messages) and messages[-1].get("role") == "assistant"
        template, images = self.chat_template, None if self.images is None else PromptImages(self.images)
        if images is not None:
            template = template.with_images(images)
        with self.scheduler() as scheduler:
            request = scheduler.submit(template.encode(messages), params, continues)
            return completion_of(request, self.has_tokenizer)

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[Event]:
        """Continue one prompt: yield an `Event` per token. It may be abandoned at any event.

        Raises `BareloopError` for an invalid prompt at once, and with the first event if memory is short.
        """
        ids, params = self.encode(prompt), params or SamplingParams()
        tokenizer = self.tokenizer if self.has_tokenizer else None
        check_prompt(ids, self.max_length, self.config.vocab_size, images=self.images)
        check_params(params, self.config.vocab_size, tokenizer)

        def events() -> Iterator[Event]:
            with self.scheduler() as scheduler:
                yield from scheduler.submit(ids, params)

        return events()

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The logits after every token: float32 [time, vocab], on the CPU."""
        ids = self.encode(ids)
        return self.sequence().feed_with_logits(ids, last=len(ids)).float().cpu()

    def score(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], batch_tokens: int | None = None
    ) -> list[Score]:
        """Log-likelihoods of (context ids, continuation ids), neither empty, as in lm-evaluation-harness.

        A pair that is too long keeps its last `max_length + 1` tokens. Log-softmax and sum are computed in the model's
        dtype. Shared parts are computed once (consecutive requests with one context, and common beginnings of
        contexts); `batch_tokens` bounds the tokens of a forward pass.
        """
        pairs = [(self.encode(context), self.encode(continuation)) for context, continuation in requests]
        questions = [list(group) for _, group in groupby(pairs, key=lambda pair: pair[0])]
        scorer = self.scorer(batch_tokens)
        scores: dict[int, list[Score]] = {}
        for batch in scorer.plan(questions):
            scores |= zip((prompt.index for prompt in batch.prompts), scorer.score(batch), strict=True)
        return [score for index in range(len(questions)) for score in scores[index]]

    def scorer(self, batch_tokens: int | None = None) -> Scorer:
        """The scorer behind `score`. It plans, then scores batch by batch, for long runs that save as they go."""
        self.states.clear()  # large steps need the memory
        return Scorer(self.sequence, BATCH_TOKENS[self.device.type] if batch_tokens is None else batch_tokens)

    @property
    def is_encoder(self) -> bool:
        """Whether the model embeds texts and generates none; whatever generates or scores raises `BareloopError`."""
        return self.model.is_encoder

    @property
    def embedding_size(self) -> int:
        """Number of dimensions of an embedding."""
        return self.config.hidden_size

    @cached_property
    def embedder(self) -> Embedder:
        """What is behind `embed`, for programs that encode and compute step by step."""
        pooling = Pooling() if self.folder is None else read_pooling(self.folder)
        tokenizer = self.tokenizer if self.has_tokenizer else None
        return Embedder(self.model, pooling, self.max_length, tokenizer, self.sequence)

    def embed(
        self, texts: Sequence[str], batch_tokens: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Embed texts: float32 [n, embedding_size] on the CPU, pooled and normalized as the checkpoint says.

        Without its word (modules.json), as of most decoders: the mean of the last hidden states, of length 1. A text is
        cut to the checkpoint's maximum. `batch_tokens` bounds the tokens of a forward pass. `progress` is told the
        number of texts that each pass has finished.
        """
        if isinstance(texts, str):
            raise BareloopError("embed takes a list of texts: embed([text])")
        return self.embedder.embed(texts, batch_tokens, progress)

    def pack(self) -> None:
        """Prepare for a long run on a CPU: wait for the C++ kernels, and pack the weights if there is ample memory."""
        if self.device.type == "cpu":
            kernels.wait()
        self.model.pack(self.copies)

    def save(self, folder: str | Path) -> None:
        """Write a folder that this engine and transformers load. It must be new or empty.

        The folder of a quantized model is for this engine only, and loads in the time of reading it. Raises
        `BareloopError` for a model in the blocks of a GGUF file, and for one with an adapter that is not merged.
        """
        save_folder(self.model, self.family, self.quant, self.folder, local_path(folder))
