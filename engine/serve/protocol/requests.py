# ruff: noqa: RUF009 `option` and `required` are dataclasses.field with a rule
"""The requests of the API: their fields with defaults and limits, and what they say about sampling.

Attributes are named as in the API. A field that is absent or null has its default; None where the model decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from engine.runtime.errors import UsageError
from engine.serve.protocol import unsupported
from engine.serve.protocol.common import (
    MAX_CHOICES,
    MAX_TEXT,
    MAX_TOKENS,
    MESSAGES,
    MODEL,
    NAMED_TOOL,
    PROMPT,
    SEEDS,
    TEMPLATE_ARGUMENTS,
    TEXTS,
    TOKEN,
    TOOLS,
    GenerationRequest,
)
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.fields import Fields, option, required
from engine.serve.protocol.rules.conditions import ExactlyOne, Excludes, Needs, NotBoth, ZeroNeeds
from engine.serve.protocol.rules.containers import Either, Items
from engine.serve.protocol.rules.scalars import Flag, Integer, Invalid, Neutral, Text

if TYPE_CHECKING:
    from engine.decoding.grammar import Grammar
    from engine.decoding.params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions"""

    messages: list[dict[str, Any]] = required(MESSAGES, "The conversation.")
    max_completion_tokens: int | None = option(
        Integer(1, MAX_TOKENS), "Most tokens of the reply; the rest of the window."
    )
    max_tokens: int | None = option(Integer(1, MAX_TOKENS), "Older name of max_completion_tokens, which comes first.")
    logprobs: bool = option(Flag(), "Report the log-probability of each token.", False)
    top_logprobs: int | None = option(Integer(0, 20), "Alternatives to report for each token. Only with logprobs.")
    prompt_logprobs: int | None = option(
        Integer(0, 20), "Alternatives to report for the prompt's tokens. Not in streams."
    )
    tools: list[dict[str, Any]] | None = option(TOOLS, "Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = option(
        Either((Text(choices=("none", "auto", "required")), NAMED_TOOL)), "Whether or which function is called."
    )
    parallel_tool_calls: bool = option(Flag(), "Whether a reply may have several calls.", True)
    reasoning_format: str = option(
        Text(choices=("auto", "deepseek", "none")), "none: leave the reasoning in the content.", "auto"
    )
    chat_template_kwargs: dict[str, Any] | None = option(TEMPLATE_ARGUMENTS, "Arguments of the chat template.")
    add_generation_prompt: bool | None = option(Flag(), "Begin a new message; true unless one is continued.")
    continue_final_message: bool | None = option(Flag(), "Continue the last message.")

    REFUSED = unsupported.CHAT
    IGNORED = unsupported.IGNORED_BY_CHAT
    TAKES_IMAGES = True
    CONDITIONS = (
        Needs("stream_options", "stream"),
        Needs("top_logprobs", "logprobs"),
        Excludes("prompt_logprobs", "stream"),
        NotBoth("add_generation_prompt", "continue_final_message"),
    )

    @property
    def max_new_tokens(self) -> int | None:
        """Most tokens of the reply; None: what the window leaves."""
        given = (self.max_completion_tokens, self.max_tokens, self.n_predict)
        first = next((number for number in given if number is not None), None)
        return None if first == -1 else first

    @property
    def alternatives(self) -> int:
        return max(1, self.top_logprobs or 0) if self.logprobs else 0


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(GenerationRequest):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]] = required(PROMPT, "Text, token ids, or a list of either.")
    max_tokens: int = option(Integer(0, MAX_TOKENS), "Most tokens of the reply. 0 only with echo.", 16)
    logprobs: int | None = option(Integer(0, 20), "Report log-probabilities: the chosen token's and of so many others.")
    echo: bool = option(Flag(), "Begin the reply with the prompt.", False)

    REFUSED = unsupported.COMPLETION
    IGNORED = unsupported.IGNORED_BY_BOTH
    CONDITIONS = (Needs("stream_options", "stream"), ZeroNeeds("max_tokens", "echo"))

    def __post_init__(self) -> None:
        if (number := len(self.prompts) * self.n) > MAX_CHOICES:
            raise Invalid(
                f"= {self.n} of {len(self.prompts)} prompts are {number} replies: use up to {MAX_CHOICES}", ("n",)
            )

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of the reply. The name of llama.cpp comes first, as max_tokens has a default."""
        if self.n_predict is None:
            return self.max_tokens
        return MAX_TOKENS if self.n_predict == -1 else self.n_predict

    @property
    def alternatives(self) -> int:
        return 0 if self.logprobs is None else max(1, self.logprobs)


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest(Fields):
    """POST /tokenize: vLLM's forms with a prompt or messages, or llama.cpp's with content."""

    model: str | None = option(MODEL, "Name of the model; the server's first one if absent.")
    prompt: str | None = option(Text(), "The text.")
    add_special_tokens: bool | None = option(Flag(), "Add BOS and such; by default true with prompt, else false.")
    content: str | None = option(Text(), "The text.")
    add_special: bool = option(Flag(), "Add BOS and such to content.", False)
    with_pieces: bool = option(Flag(), "Answer with the text of each token.", False)
    messages: list[dict[str, Any]] | None = option(MESSAGES, "A conversation, for the chat template.")
    tools: list[dict[str, Any]] | None = option(TOOLS, "Functions, with messages.")
    chat_template_kwargs: dict[str, Any] | None = option(TEMPLATE_ARGUMENTS, "Arguments of the chat template.")
    add_generation_prompt: bool | None = option(Flag(), "Begin a new message; true unless one is continued.")
    continue_final_message: bool | None = option(Flag(), "Continue the last message.")

    REFUSED: ClassVar = {
        "chat_template": unsupported.CHAT["chat_template"],
        "parse_special": Neutral((True,)),
        "return_token_strs": Neutral((False,), "use with_pieces"),
    }
    TAKES_IMAGES = True
    CONDITIONS = (
        ExactlyOne(("prompt", "content", "messages")),
        NotBoth("add_generation_prompt", "continue_final_message"),
    )

    def __post_init__(self) -> None:
        if self.messages is None and len(self.text) > MAX_TEXT:
            name = "content" if self.prompt is None else "prompt"
            raise Invalid(f"has {len(self.text):,} characters: use up to {MAX_TEXT:,}", (name,))

    def as_chat(self) -> ChatRequest:
        """The conversation, where the request has `messages`."""
        return ChatRequest(
            model=self.model,
            messages=self.messages or [],
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
        )

    @property
    def text(self) -> str:
        """The text to encode; not for messages."""
        return self.prompt if self.prompt is not None else self.content or ""

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds BOS and such to the text."""
        if self.add_special_tokens is not None:
            return self.add_special_tokens
        return self.prompt is not None or self.add_special


@dataclass(frozen=True, kw_only=True)
class DetokenizeRequest(Fields):
    """POST /detokenize"""

    model: str | None = option(MODEL, "Name of the model; the server's first one if absent.")
    tokens: list[int] = required(Items(TOKEN, "token ids"), "Token ids.")


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest(Fields):
    """POST /v1/embeddings"""

    model: str | None = option(MODEL, "Name of the model; the server's first one if absent.")
    input: str | list[str] | list[int] | list[list[int]] = required(TEXTS, "Text, token ids, or a list of either.")
    encoding_format: str = option(Text(choices=("float", "base64")), "base64: float32, little-endian.", "float")
    dimensions: int | None = option(Integer(1, MAX_TOKENS), "The model's own number; vectors are not shortened.")

    IGNORED = ("user",)

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """All inputs: either texts or lists of token ids."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input


def sampling_params(
    request: ChatRequest | CompletionRequest,
    defaults: Mapping[str, Any],
    max_new_tokens: int,
    index: int = 0,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """How choice `index` of a request is sampled: by the request, else the model's `defaults`, else OpenAI's.

    Raises `ApiError` 400 for what the engine refuses.
    """
    from engine.decoding.params import SamplingParams

    chosen = {"temperature": 1.0, "top_p": 1.0} | dict(defaults)
    if request.repeat_penalty is not None:
        chosen["repetition_penalty"] = request.repeat_penalty
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        if (value := getattr(request, name)) is not None:
            chosen[name] = max(0, value) if name == "top_k" else value
    seed = request.seed
    try:
        return SamplingParams(
            **chosen,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias=request.logit_bias or None,
            # Each choice has a seed of its own, within 64 bits.
            seed=None if seed is None else (seed + index + SEEDS) % (2 * SEEDS) - SEEDS,
            logprobs=request.alternatives,
            max_new_tokens=max_new_tokens,
            stop=request.stops,
            stop_token_ids=tuple(request.stop_token_ids or ()),
            ignore_eos=request.ignore_eos,
            grammar=grammar,
        )
    except UsageError as error:
        raise ApiError(400, str(error), param=_field(str(error), [each.name for each in fields(request)])) from None


def _field(message: str, names: Sequence[str]) -> str | None:
    """The field that a message of the engine begins with."""
    name = message.split(maxsplit=1)[0].replace("max_new_tokens", "max_tokens")
    return name if name in names else None
