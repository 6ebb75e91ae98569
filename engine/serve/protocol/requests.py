# ruff: noqa: RUF009 `option` and `required` are dataclasses.field with a rule
"""The requests of the API: their fields with defaults and limits, and what they say about sampling.

Attributes are named as in the API. A field that is absent or null has its default; None where the model decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import UsageError
from engine.serve.protocol import unsupported
from engine.serve.protocol.conditions import Excludes, Needs, NotBoth, ZeroNeeds
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.fields import Fields, Record, Tagged, option, required
from engine.serve.protocol.rules import Either, Flag, Integer, Invalid, Items, Members, Number, Table, Text

if TYPE_CHECKING:
    from engine.decoding.grammar import Grammar
    from engine.decoding.sampling import SamplingParams

MAX_CHOICES = 128  # replies of one request: prompts x n
MAX_STOPS, MAX_STOP_LENGTH = 64, 1024
MAX_BIASES = 1024
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_JSON = 100_000  # characters of a schema, of all tools, or of the arguments of a template
MAX_TOKENS = 2**31 - 1
SEEDS = 2**63

TOKEN = Integer(0, 2**31 - 1)
IDS = Items(TOKEN, "token ids", 1)
PROMPT = Either(
    (Text(1), Items(Text(1), "texts", 1, MAX_CHOICES), IDS, Items(IDS, "lists of token ids", 1, MAX_CHOICES))
)
STOP = Either((Text(1, MAX_STOP_LENGTH), Items(Text(1, MAX_STOP_LENGTH), "texts", 0, MAX_STOPS)))
MESSAGES = Items(Members({"role": Text(1, 64)}), "messages", 1, MAX_MESSAGES)
TOOLS = Items(Members(), "tools", 0, MAX_TOOLS, MAX_JSON)
# What the server itself gives to a chat template, and to the function that renders it.
RESERVED = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
)
TEMPLATE_ARGUMENTS = Members(reserved=RESERVED, maximum=64, max_size=MAX_JSON)
MODEL = Text(0, 512)


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Fields):
    """What a stream contains besides the reply."""

    include_usage: bool = option(Flag(), "A last chunk with the number of tokens.", False)
    continuous_usage_stats: bool = option(Flag(), "The number of tokens in every chunk.", False)


@dataclass(frozen=True, kw_only=True)
class JsonSchema(Fields):
    """A named JSON schema."""

    schema: dict[str, Any] = required(Members(max_size=MAX_JSON), "The schema.")
    name: str | None = option(Text(0, 256), "Without effect.")
    description: str | None = option(Text(), "Without effect.")
    strict: bool | None = option(Flag(), "Replies follow the schema whatever this is.")


@dataclass(frozen=True, kw_only=True)
class TextFormat(Fields):
    """Any text."""


@dataclass(frozen=True, kw_only=True)
class ObjectFormat(Fields):
    """A JSON object, or what a schema accepts (an extension of llama.cpp)."""

    schema: dict[str, Any] | None = option(Members(max_size=MAX_JSON), "A JSON schema of the reply.")


@dataclass(frozen=True, kw_only=True)
class SchemaFormat(Fields):
    """JSON that a schema accepts."""

    json_schema: JsonSchema = required(Record(JsonSchema, "an object with name and schema"), "The schema.")


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat
FORMAT = Tagged(
    {"text": TextFormat, "json_object": ObjectFormat, "json_schema": SchemaFormat},
    '{"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}',
)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Fields):
    """What both kinds of completions have."""

    model: str | None = option(MODEL, "Name of the model; the server's first one if absent.")
    temperature: float | None = option(Number(0, 2), "0: always the likeliest token.")
    top_p: float | None = option(Number(0, 1, above=True), "Sample from the likeliest tokens with this probability.")
    top_k: int | None = option(Integer(-1, MAX_TOKENS), "Sample from this many tokens; 0 or -1: all.")
    min_p: float | None = option(Number(0, 1), "Least probability, as a share of the likeliest token's.")
    repetition_penalty: float | None = option(Number(1e-6, 1e6), "Above 1: less repetition of prompt and reply.")
    presence_penalty: float = option(Number(-2, 2), "For tokens that occur in the reply.", 0.0)
    frequency_penalty: float = option(Number(-2, 2), "For each occurrence of a token in the reply.", 0.0)
    logit_bias: dict[int, float] | None = option(Table(Number(-100, 100), MAX_BIASES), "Added to the logits of tokens.")
    seed: int | None = option(Integer(-SEEDS, SEEDS - 1), "With the same seed, the same reply.")
    n: int = option(Integer(1, 64), "Number of replies for each prompt.", 1)
    stop: str | list[str] | None = option(STOP, "Texts that end the reply. They are not part of it.")
    stop_token_ids: list[int] | None = option(Items(TOKEN, "token ids", 0, MAX_BIASES), "Tokens that end the reply.")
    ignore_eos: bool = option(Flag(), "Go on after the model's end of text.", False)
    stream: bool = option(Flag(), "Send the reply in pieces, as server-sent events.", False)
    stream_options: StreamOptions | None = option(Record(StreamOptions, "an object"), "Only with stream.")
    response_format: ResponseFormat | None = option(FORMAT, "What the reply must be.")
    return_token_ids: bool = option(Flag(), "Add the ids of prompt and reply.", False)
    cache_salt: str | None = option(Text(1, 256), "Share cached prompts only with requests of the same salt.")
    cache_prompt: bool = option(Flag(), "Without effect: a cached prompt changes no reply.", True)
    timings_per_token: bool = option(Flag(), "Add llama.cpp's timings.", False)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def alternatives(self) -> int:
        """`SamplingParams.logprobs`: alternatives to compute with each token, 0 without log-probabilities."""
        raise NotImplementedError


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
        Either((Text(choices=("none", "auto", "required")), Members())), "Whether or which function is called."
    )
    parallel_tool_calls: bool = option(Flag(), "Whether a reply may have several calls.", True)
    reasoning_effort: str | None = option(Text(0, 64), "An argument of the chat template, if it has one.")
    reasoning_format: str = option(
        Text(choices=("auto", "deepseek", "none")), "none: leave the reasoning in the content.", "auto"
    )
    chat_template_kwargs: dict[str, Any] | None = option(TEMPLATE_ARGUMENTS, "Arguments of the chat template.")
    add_generation_prompt: bool | None = option(Flag(), "Begin a new message; true unless one is continued.")
    continue_final_message: bool | None = option(Flag(), "Continue the last message.")

    REFUSED = unsupported.CHAT
    IGNORED = (*unsupported.IGNORED_BY_BOTH, "verbosity")
    CONDITIONS = (
        Needs("stream_options", "stream"),
        Needs("top_logprobs", "logprobs"),
        Excludes("prompt_logprobs", "stream"),
        NotBoth("add_generation_prompt", "continue_final_message"),
    )

    @property
    def max_new_tokens(self) -> int | None:
        """Most tokens of the reply; None: what the window leaves."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

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
        """Most tokens of the reply."""
        return self.max_tokens

    @property
    def alternatives(self) -> int:
        return 0 if self.logprobs is None else max(1, self.logprobs)


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
    from engine.decoding.sampling import SamplingParams

    chosen = {"temperature": 1.0, "top_p": 1.0} | dict(defaults)
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
