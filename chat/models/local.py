"""A model that this program loads, with its chat template and a scheduler that caches the conversation."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from chat.context import Message, SystemRole, system_role
from chat.images import images_of
from chat.models.interface import Origin, ReplyEvent, TokenProbability
from chat.models.plain import PlainTemplate
from engine.checkpoints.opening import weights_fingerprint
from engine.cli.parser import short_name
from engine.decoding.images import ImageLibrary, is_image_id
from engine.decoding.loop import Event
from engine.decoding.params import SamplingParams, defaults
from engine.decoding.scheduling.request import Request
from engine.decoding.scheduling.scheduler import Scheduler
from engine.decoding.sequence import PREFILL_CHUNK
from engine.decoding.speculation import DraftStatistics
from engine.llm import LLM
from engine.runtime.clocks import read_bandwidth
from engine.runtime.errors import BareloopError
from engine.runtime.memory import peak_memory
from engine.runtime.pictures import parse_data_url
from engine.text.chat_template import ChatTemplate
from engine.text.reasoning import opens_reasoning

KEPT_IMAGES = 16  # of which a conversation remembers the ids
ALTERNATIVES = 5  # recorded with every token of a prompt that is scored, and of the page's replies

_bandwidths: dict[Any, float] = {}  # by device: the most that was measured, as a busy machine measures too little
_fingerprint = cache(weights_fingerprint)  # it reads hundreds of megabytes, and every turn is saved


class LocalModel:
    """An LLM for one conversation."""

    others = "a folder or a hub id"
    counts_exactly = can_score = True

    def __init__(
        self, llm: LLM, scheduler: Scheduler | None = None, now: datetime | None = None, record: int = 0
    ) -> None:
        """`scheduler`: one that other conversations use, too; by default the model gets its own.

        `record`: alternatives that are recorded with every token, if the user has not set more.
        """
        self.llm = llm
        self.record = record
        self.limit = llm.affordable_length()
        self.template = _load_template(llm, now or datetime.now())
        self.scope = object()  # of what is cached: nothing of other conversations
        cache_bytes = 2 * llm.model.new_state().row_bytes(self.limit)  # a row that grows is copied
        self.scheduler = scheduler or Scheduler(llm, 1, PREFILL_CHUNK, cache_bytes, exact=False)
        self._encoded: tuple[Sequence[Message], list[int], object] | None = None

    @staticmethod
    def load(name: str | Path, **options: Any) -> LocalModel:
        """Load a model by its name; `options` are those of `LLM.load`."""
        return LocalModel(LLM.load(name, **options))

    def at(self, now: datetime) -> LocalModel:
        """The same model for a conversation that began at this time. What is cached can be used again."""
        other = LocalModel(self.llm, self.scheduler, now, self.record)
        other.limit, other.scope, other.system_role = self.limit, self.scope, self.system_role
        return other

    @property
    def description(self) -> str:
        adapter = "" if self.llm.adapter is None else f", adapter {short_name(self.llm.adapter)}"
        return f"{self.llm.device.type}, {str(self.llm.dtype).removeprefix('torch.')}{adapter}"

    @property
    def max_length(self) -> int:
        return self.llm.max_length

    @cached_property
    def defaults(self) -> Mapping[str, Any]:
        return defaults(self.llm.default_params)

    @cached_property
    def system_role(self) -> SystemRole:
        """Where the chat template takes a system message; found by trying it, once."""
        return system_role(self.count, self.prompt_text)

    @property
    def takes_images(self) -> bool:
        """Whether it is a vision-language model with a chat template."""
        return self.llm.images is not None and isinstance(self.template, ChatTemplate)

    @property
    def drafts(self) -> DraftStatistics | None:
        return self.scheduler.drafts

    @property
    def peak_memory(self) -> int:
        return peak_memory(self.llm.device) or 0

    def origin(self) -> Origin:
        """Hashes of the weights and of the chat template."""
        assert self.llm.folder is not None  # a model with a tokenizer was loaded from a folder
        source = self.template.source if isinstance(self.template, ChatTemplate) else ""
        weights = _fingerprint(self.llm.folder, self.llm.adapter)
        return Origin(weights, hashlib.sha256(source.encode()).hexdigest())

    def warnings(self, window: int | None) -> list[str]:
        """What a user should know before the first message."""
        texts = []
        if isinstance(self.template, PlainTemplate):
            texts.append("a base model without a chat template: the chat is written as a script of User and Assistant")
        wanted, maximum = window or self.max_length, self.max_length
        if self.limit < min(wanted, maximum):
            texts.append(
                f"memory is enough for a window of {self.limit:,} tokens, not {min(wanted, maximum):,}; "
                "use a smaller model or dtype"
            )
        elif wanted > maximum:
            texts.append(f"the model's window is {maximum:,} tokens, not {wanted:,}")
        return texts

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of these messages in the model's template."""
        return len(self._encode(messages))

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of these messages. The last result is kept: what `fit` counted last is the prompt.

        Its images are kept, too, so that they are in memory when it is computed.
        """
        encoded = self._encoded  # read once, as another thread may encode another prompt
        if encoded is None or encoded[0] != messages:
            try:
                ids = self.template.encode(messages)
            except BareloopError:
                self._check_images(messages)
                raise
            images = None if self.llm.images is None else self.llm.images.pin(ids)
            encoded = self._encoded = (messages, ids, images)
        return encoded[1]

    def _check_images(self, messages: Sequence[Message]) -> None:
        """Raise `BareloopError` that names the first image that cannot be read, as in a file that was changed."""
        encoder = self.template.images if isinstance(self.template, ChatTemplate) else None
        for image in (image for message in messages for image in images_of(message["content"])):
            try:
                if encoder is not None:
                    encoder.encode(image["image"])
            except BareloopError as error:
                raise BareloopError(f"[image {image['name']}]: {error}; /undo removes its turn") from None

    def _shown(self, messages: Sequence[Message]) -> list[int]:
        """The same ids with the model's image token for each vector of an image."""
        ids = self._encode(messages)
        return ids if self.llm.images is None else self.llm.images.placeholders(ids)

    def generate(self, messages: Sequence[Message], sampling: Mapping[str, Any], continues: bool) -> LocalGeneration:
        """Submit a prompt. What the conversation has cached is not computed again."""
        params = SamplingParams(**{**self.defaults, **sampling})
        params = replace(params, logprobs=max(params.logprobs, self.record))
        if isinstance(self.template, PlainTemplate):
            params = replace(params, stop=(*params.stop, *PlainTemplate.STOP))
        ids = self._encode(messages)
        opens = not continues and opens_reasoning(self.llm.tokenizer, self._shown(messages))
        return LocalGeneration(self.scheduler.submit(ids, params, continues, scope=self.scope), opens)

    def tokens(self, messages: Sequence[Message]) -> list[tuple[int, str]]:
        """Ids and texts of the tokens of a prompt; for each vector of an image those of the model's image token."""
        return [(token, self._decode(token)) for token in self._shown(messages)]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, with control tokens. The vectors of one tile of an image are shown as one token."""
        pairs = zip(self._encode(messages), self._shown(messages), strict=True)
        runs = groupby(pairs, key=lambda pair: is_image_id(pair[0]))
        tokens = [token for is_image, run in runs for _, token in ([next(run)] if is_image else run)]
        return b"".join(map(self.llm.tokenizer.token_bytes, tokens)).decode(errors="replace")

    def probabilities(self, events: Sequence[ReplyEvent]) -> list[TokenProbability]:
        """The tokens of these events; without probabilities if neither `record` nor `logprobs` was set."""
        return [
            TokenProbability(
                self._decode(event.token_id), event.logprob, self._alternatives(event.top_logprobs), id=event.token_id
            )
            for event in events
            if isinstance(event, Event)
        ]

    def score(self, messages: Sequence[Message]) -> list[TokenProbability]:
        """The tokens of a prompt with their probabilities; the first has none. What is cached is not computed again."""
        ids = self._encode(messages)
        params = SamplingParams(max_new_tokens=1)  # it comes when the prompt is computed
        request = self.scheduler.submit(ids, params, scope=self.scope, prompt_logprobs=ALTERNATIVES)
        try:
            for _ in request:
                pass
        finally:
            request.cancel()
        if (entries := request.prompt_logprobs) is None:
            raise BareloopError("the model was unloaded; try again")
        detokenizer = self.llm.tokenizer.detokenizer(continues=True)
        return [
            TokenProbability(
                self._decode(token),
                entry and entry[0],
                self._alternatives(entry and entry[1]),
                detokenizer.push(token),
                id=token,
            )
            for token, entry in zip(self._shown(messages), entries, strict=True)
        ]

    def token_bytes(self, context: int) -> int:
        """Bytes that are read from memory to decode a token after `context` others."""
        return self.llm.model.token_bytes(context)

    def bandwidth(self) -> float:
        """Bytes per second that can be read from the device's memory: the most of all measurements, and of another now.

        It takes a tenth of a second.
        """
        device = self.llm.device
        _bandwidths[device] = max(_bandwidths.get(device, 0.0), read_bandwidth(device))
        return _bandwidths[device]

    def ends(self, text: str) -> bool:
        """Whether a token of this text ends a reply."""
        return any(self._decode(token) == text for token in self.llm.eos_token_ids)

    def is_control(self, text: str) -> bool:
        """Whether a token of this text is a control token."""
        return text in self.llm.tokenizer.control_tokens

    def _alternatives(self, likeliest: Sequence[tuple[int, float]] | None) -> tuple[tuple[str, float], ...]:
        return tuple((self._decode(token), logprob) for token, logprob in likeliest or ())

    def _decode(self, token: int) -> str:
        """The text of a token inside a text; a control token's is its name. The same text is one object in memory."""
        return sys.intern(self.llm.tokenizer.token_bytes(token).decode(errors="replace"))


class ConversationImages:
    """The images of a conversation as token ids. Those of the last ones are kept: a prompt is counted several times.

    They are data: URLs: no text of a conversation may name a path.
    """

    def __init__(self, library: ImageLibrary) -> None:
        self.library = library
        self._kept = lru_cache(KEPT_IMAGES)(self._encode)

    def encode(self, source: str | Path | bytes) -> list[int]:
        """Token ids of one image in a prompt, as `ImageLibrary.encode` gives them. Raises `BareloopError`."""
        ids, _ = self._kept(source)
        return [*ids]

    def _encode(self, source: str | Path | bytes) -> tuple[list[int], object]:
        """The ids, and what keeps the image in memory as long as they are remembered."""
        ids = self.library.encode(source if isinstance(source, bytes) else parse_data_url(str(source)))
        return ids, self.library.pin(ids)


class LocalGeneration:
    """A reply of a scheduler."""

    def __init__(self, request: Request, in_reasoning: bool) -> None:
        self.request = request
        self.in_reasoning = in_reasoning
        self.prompt_tokens = request.usage.prompt_tokens
        self.completion_tokens = 0  # that were read: with drafts, the scheduler may be ahead

    @property
    def cached_tokens(self) -> int:
        return self.request.cached_tokens

    def __iter__(self) -> Iterator[Event]:
        for event in self.request:
            self.completion_tokens += 1
            yield event

    def cancel(self) -> None:
        self.request.cancel()


def _load_template(llm: LLM, now: datetime) -> ChatTemplate | PlainTemplate:
    """The model's chat template, or the plain script for a model without one."""
    tokenizer = llm.tokenizer
    assert llm.folder is not None  # a model with a tokenizer was loaded from a folder
    try:
        images = None if llm.images is None else ConversationImages(llm.images)
        return ChatTemplate.load(llm.folder, tokenizer, now, images=images)
    except BareloopError:
        return PlainTemplate(tokenizer)
