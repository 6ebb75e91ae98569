# ruff: noqa: RUF009 `option` and `required` are dataclasses.field with a rule
"""What several requests have in common: limits, rules of fields, and the fields of both kinds of completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.serve.protocol.fields import Fields, Record, option
from engine.serve.protocol.rules.containers import Either, Items, Members, Table, Tagged
from engine.serve.protocol.rules.scalars import Flag, Integer, Number, Text

MAX_CHOICES = 128  # replies of one request: prompts x n
MAX_TEXT = 2_000_000  # bytes of a request without its images
MAX_TEXTS = 2048  # to embed, as in OpenAI's API
MAX_STOPS, MAX_STOP_LENGTH = 64, 1024
MAX_BIASES = 1024
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_JSON = 100_000  # characters of a schema, of all tools, or of the arguments of a template
MAX_TOKENS = 2**31 - 1
SEEDS = 2**63

TOKEN = Integer(0, 2**31 - 1)
N_PREDICT = Either((Integer(1, MAX_TOKENS), Integer(-1, -1)))
IDS = Items(TOKEN, "token ids", 1)
PROMPT = Either(
    (Text(1), Items(Text(1), "texts", 1, MAX_CHOICES), IDS, Items(IDS, "lists of token ids", 1, MAX_CHOICES))
)
TEXTS = Either((Text(1), Items(Text(1), "texts", 1, MAX_TEXTS), IDS, Items(IDS, "lists of token ids", 1, MAX_TEXTS)))
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
NAMED_TOOL = Tagged(
    {"function": Members({"function": Members({"name": Text(1, 256)})})},
    '{"type": "function", "function": {"name": "…"}}',
)
TEMPLATE_ARGUMENTS = Members(reserved=RESERVED, maximum=64, max_size=MAX_JSON)
MODEL = Text(0, 512)
PENALTY = Number(1e-6, 1e6)
SCHEMA = Members(max_size=MAX_JSON)
NAMED_SCHEMA = Members({"schema": SCHEMA}, {"name": Text(), "description": Text(), "strict": Flag()})
FORMAT = Tagged(
    {
        "text": Members(),
        "json_object": Members(optional={"schema": SCHEMA}),  # a schema is llama.cpp's extension
        "json_schema": Members({"json_schema": NAMED_SCHEMA}),
    },
    '{"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}',
)


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Fields):
    """What a stream contains besides the reply."""

    include_usage: bool = option(Flag(), "A last chunk with the number of tokens.", False)
    continuous_usage_stats: bool = option(Flag(), "The number of tokens in every chunk.", False)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Fields):
    """What both kinds of completions have."""

    model: str | None = option(MODEL, "Name of the model; the server's first one if absent.")
    temperature: float | None = option(Number(0, 2), "0: always the likeliest token.")
    top_p: float | None = option(Number(0, 1, above=True), "Sample from the likeliest tokens with this probability.")
    top_k: int | None = option(Integer(-1, MAX_TOKENS), "Sample from this many tokens; 0 or -1: all.")
    min_p: float | None = option(Number(0, 1), "Least probability, as a share of the likeliest token's.")
    repetition_penalty: float | None = option(PENALTY, "Above 1: less repetition of prompt and reply.")
    repeat_penalty: float | None = option(PENALTY, "Another name of repetition_penalty, which comes first.")
    presence_penalty: float = option(Number(-2, 2), "For tokens that occur in the reply.", 0.0)
    frequency_penalty: float = option(Number(-2, 2), "For each occurrence of a token in the reply.", 0.0)
    logit_bias: dict[int, float] | None = option(Table(Number(-100, 100), MAX_BIASES), "Added to the logits of tokens.")
    seed: int | None = option(Integer(-SEEDS, SEEDS - 1), "With the same seed, the same reply.")
    n: int = option(Integer(1, 64), "Number of replies for each prompt.", 1)
    stop: str | list[str] | None = option(STOP, "Texts that end the reply. They are not part of it.")
    stop_token_ids: list[int] | None = option(Items(TOKEN, "token ids", 0, MAX_BIASES), "Tokens that end the reply.")
    ignore_eos: bool = option(Flag(), "Go on after the model's end of text.", False)
    stream: bool = option(Flag(), "Send the reply in pieces, as server-sent events.", False)
    stream_options: StreamOptions = option(Record(StreamOptions, "an object"), "Only with stream.", StreamOptions())
    response_format: dict[str, Any] | None = option(FORMAT, "What the reply must be.")
    return_token_ids: bool = option(Flag(), "Add the ids of prompt and reply.", False)
    cache_salt: str | None = option(Text(1, 256), "Share cached prompts only with requests of the same salt.")
    cache_prompt: bool = option(Flag(), "Without effect: a cached prompt changes no reply.", True)
    n_predict: int | None = option(N_PREDICT, "llama.cpp's name of max_tokens. -1: no limit but the window.")
    json_schema: dict[str, Any] | None = option(SCHEMA, "llama.cpp's short form of response_format, which comes first.")
    timings_per_token: bool = option(Flag(), "Add llama.cpp's timings.", False)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_format(self) -> dict[str, Any] | None:
        """`response_format` unless it is text, else the object {"json_schema": …} of the short form."""
        is_text = (self.response_format or {"type": "text"})["type"] == "text"
        return {"json_schema": self.json_schema} if is_text and self.json_schema is not None else self.response_format

    @property
    def alternatives(self) -> int:
        """`SamplingParams.logprobs`: alternatives to compute with each token, 0 without log-probabilities."""
        raise NotImplementedError
