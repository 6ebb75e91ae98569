"""A model of an OpenAI-compatible server: ours, vLLM's, llama.cpp's, OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from chat.context import Message, SystemRole, system_role
from chat.images import Content, images_of, text_of
from chat.models.counting import TokenCounter
from chat.models.interface import Origin, PromptTooLongError, ReplyEvent, TokenProbability
from chat.models.remote_reply import RemoteEvent, RemoteGeneration
from engine.remote.cancellation import Cancellation
from engine.remote.client import RemoteModel
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError, TemplateError

ASSUMED_WINDOW = 4096  # tokens, if neither the server nor the user tells
SMALLER = 0.75  # factor of the window after a refusal without numbers
PATH = "/chat/completions"
UNCHANGED = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "stop_token_ids", "ignore_eos"),
)
# Refusals because of the length: their codes and types; else how servers word them, and the numbers in them.
TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")
TOO_LONG = re.compile(r"context[ _](length|size|window)|(prompt|input) is too long|`inputs` tokens", re.IGNORECASE)
WINDOW = re.compile(
    r"context (?:length|size|window)(?: of this model)?(?: is| of|:)? \(?([\d,]*\d)|must be <= (\d+)", re.IGNORECASE
)
PROMPT = re.compile(
    r"([\d,]*\d) (?:tokens )?in the (?:messages|prompt)|has ([\d,]*\d) (?:input )?tokens|resulted in ([\d,]*\d) tokens"
    r"|contains (?:at least )?([\d,]*\d) input tokens"
    r"|request \(([\d,]*\d) tokens\)|given: (\d+) `inputs`",
    re.IGNORECASE,
)


# Where a server does not tell its control tokens: those that end replies in common templates, and how others look.
END_TOKENS = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>"}
)
CONTROL_TOKEN = re.compile(r"<\|[^<>\s]*\|>|<(s|bos|pad|unk|start_of_turn)>")


class Server:
    """A server and what is needed to talk with its models."""

    def __init__(self, url: str, api_key: str | None = None, window: int | None = None) -> None:
        """`window`: what the user sets; taken if the server does not tell it."""
        self.url, self.api_key, self.window = url, api_key, window

    def first(self) -> str:
        """The name of the server's first model. Raises `BareloopError` if it lists none."""
        return self.names()[0]

    def names(self) -> list[str]:
        """The names of all its models. Raises `BareloopError` if it lists none."""
        with RemoteModel(self.url, None, self.api_key) as client:
            try:
                names = client.names()
            except RemoteError as error:
                if error.status != 404:
                    raise
                names = []
            if not names:
                raise BareloopError(f"{client.url} does not list its models; name one with -m NAME")
        return names

    def load(self, name: str) -> RemoteChat:
        """A model by its name. Raises `BareloopError` with the known names if there is no such model."""
        client = RemoteModel(self.url, name, self.api_key)
        client.check()
        return RemoteChat(client, self.window)


class RemoteChat:
    """A model of a server. The server knows its defaults; only what the user has set is sent."""

    defaults = None
    drafts = None
    peak_memory = 0
    can_score = False
    takes_images = True  # unknown: a server that takes none says so when one is sent

    def __init__(self, client: RemoteModel, window: int | None = None) -> None:
        self.client = client
        self.counter = TokenCounter(client)
        told = self.counter.window or client.max_length()
        self.is_window_known = told is not None
        self.max_length = told or window or ASSUMED_WINDOW
        self.limit = self.max_length  # smaller after a refusal
        self._length_field = "max_tokens"  # what every server takes, but for some models of OpenAI

    def at(self, now: datetime) -> RemoteChat:  # noqa: ARG002
        """Itself: the server renders the template, with its own date."""
        return self

    @property
    def description(self) -> str:
        return self.client.url

    @property
    def others(self) -> str:
        try:
            return f"one of: {', '.join(self.client.names())}"
        except RemoteError:
            return "the name of a model of the server"

    @cached_property
    def system_role(self) -> SystemRole:
        """Where the model's template takes a system message, as far as the server tells: else only the first."""
        if not self.counter.takes_messages:
            return "first"

        def text(messages: Sequence[Message]) -> str:
            try:
                return self.prompt_text(messages)
            except BareloopError as error:
                if isinstance(error, RemoteError) and error.status is None:
                    raise
                raise TemplateError(str(error)) from None  # the server rejects them, or does not show its prompts

        return system_role(self.count, text)

    @property
    def counts_exactly(self) -> bool:
        return self.counter.is_exact

    def origin(self) -> Origin:
        """The server's address, without credentials."""
        return Origin(url=self.client.url)

    def warnings(self, window: int | None) -> list[str]:
        """What a user should know before the first message."""
        if not self.is_window_known and window is None:
            return [
                f"the server does not tell its window; {self.limit:,} tokens are assumed, and --ctx-size changes that"
            ]
        if window is not None and window > self.max_length:
            return [f"the model's window is {self.max_length:,} tokens, not {window:,}"]
        return []

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of these messages, as exactly as the server allows."""
        return self.counter.count(messages)

    def generate(self, messages: Sequence[Message], sampling: Mapping[str, Any], continues: bool) -> RemoteGeneration:
        """A reply; the prompt is sent when it is read."""
        counted = self.count(messages)
        return RemoteGeneration(
            lambda cancellation: self._answer(messages, sampling, continues, counted, cancellation),
            counted,
            lambda tokens: self.counter.learn(messages, tokens),
        )

    def _answer(
        self,
        messages: Sequence[Message],
        sampling: Mapping[str, Any],
        continues: bool,
        counted: int,
        cancellation: Cancellation,
    ) -> Iterator[dict[str, Any]]:
        """Send the prompt, and yield the chunks of the answer. Raises `PromptTooLongError`."""
        body: dict[str, Any] = {
            "messages": as_sent(messages),
            "stream_options": {"include_usage": True},
            self._length_field: sampling["max_new_tokens"],
            **request_fields(sampling),
        }
        if continues:
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        try:
            yield from self.client.stream(PATH, body, cancellation)
            return
        except RemoteError as error:
            text = str(error.details.get("message", error))
            if error.status not in (400, 413, 422):
                raise
            if {str(error.details.get(name)) for name in ("code", "type")} & {*TOO_LONG_CODES} or TOO_LONG.search(text):
                raise self._learn(error.details, text, messages, counted, sampling["max_new_tokens"]) from None
            if "max_completion_tokens" not in text or self._length_field == "max_completion_tokens":
                raise
            self._length_field = "max_completion_tokens"
        yield from self._answer(messages, sampling, continues, counted, cancellation)

    def _learn(
        self, details: Mapping[str, Any], text: str, messages: Sequence[Message], counted: int, reply: int
    ) -> PromptTooLongError:
        """Make sure that this prompt with its reply counts as too long from now on. Return the error that says so."""
        window = _positive(details.get("n_ctx")) or _number(WINDOW, text)
        tokens = _positive(details.get("n_prompt_tokens")) or _number(PROMPT, text)
        if tokens is not None and tokens > counted:
            self.counter.learn(messages, tokens)
        if window is not None:
            self.limit = min(self.limit, window)
        needed = self.count(messages) + reply
        if needed <= self.limit:
            self.limit = max(1, int(needed * SMALLER))
        found = f", which counts {tokens:,} tokens" if tokens else ""
        room = f" and has a window of {window:,}" if window else ""
        return PromptTooLongError(f"too long for {self.client.url}{found}{room}: sending less")

    def tokens(self, messages: Sequence[Message]) -> list[tuple[int, str]]:
        """Ids and texts of the tokens of a prompt. Raises `BareloopError` if the server does not tell them."""
        if self.counter.takes_messages:
            answer = self.client.tokenize_messages(as_sent(messages), with_pieces=True) or {}
            tokens = answer.get("tokens", [])
            if all(isinstance(token, dict) and {"id", "piece"} <= token.keys() for token in tokens):
                return [(token["id"], _piece(token["piece"])) for token in tokens]
            texts = {token: self.client.detokenize([token]) for token in dict.fromkeys(tokens)}
            if None not in texts.values():
                return [(token, str(texts[token])) for token in tokens]
        raise self._unknown_prompt()

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, with control tokens. Raises as `tokens`."""
        answer = self.client.tokenize_messages(as_sent(messages)) if self.counter.takes_messages else None
        text = self.client.detokenize(answer["tokens"]) if answer else None
        if text is None:
            raise self._unknown_prompt()
        return text

    def _unknown_prompt(self) -> BareloopError:
        return BareloopError(f"{self.client.url} does not show its prompts; this needs a model loaded here")

    def probabilities(self, events: Sequence[ReplyEvent]) -> list[TokenProbability]:
        """The tokens of these events; without probabilities unless `logprobs` was set and the server knows them."""
        return [token for event in events if isinstance(event, RemoteEvent) for token in event.tokens]

    def score(self, messages: Sequence[Message]) -> list[TokenProbability]:  # noqa: ARG002
        """Raises `BareloopError`."""
        raise BareloopError(
            f"{self.client.url} does not tell the probabilities of a text; /set logprobs 5 records those of replies"
        )

    def token_bytes(self, context: int) -> int:  # noqa: ARG002
        return 0

    def bandwidth(self) -> float:
        return 0.0

    def ends(self, text: str) -> bool:
        """Whether this is the server's end token, as far as it tells, or a common one."""
        return text in END_TOKENS or text == self._end_token

    def is_control(self, text: str) -> bool:
        """Whether this looks like a control token."""
        return self.ends(text) or CONTROL_TOKEN.fullmatch(text) is not None

    @cached_property
    def _end_token(self) -> str | None:
        try:
            token = (self.client.tokenizer_info() or {}).get("eos_token")
        except RemoteError:
            return None
        return token if isinstance(token, str) and token else None


def as_sent(messages: Sequence[Message]) -> list[Message]:
    """The messages as OpenAI's API has them: an image is a part {"type": "image_url", "image_url": {"url": …}}."""
    return [{**message, "content": _content(message["content"])} for message in messages]


def _content(content: Content) -> Content:
    if isinstance(content, str):
        return content
    images = [{"type": "image_url", "image_url": {"url": image["image"]}} for image in images_of(content)]
    text = text_of(content)
    return [*images, *([{"type": "text", "text": text}] if text else [])]  # some servers refuse an empty text


def request_fields(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request for these fields of `SamplingParams`, without the length."""
    fields = {name: sampling[name] for name in UNCHANGED if sampling.get(name) is not None}
    if "repetition_penalty" in fields:
        fields["repeat_penalty"] = fields["repetition_penalty"]  # llama.cpp's name
    if sampling.get("stop"):
        fields["stop"] = list(sampling["stop"])
    if sampling.get("logit_bias"):
        fields["logit_bias"] = {str(token): bias for token, bias in sampling["logit_bias"].items()}
    if sampling.get("logprobs"):
        fields |= {"logprobs": True, "top_logprobs": sampling["logprobs"]}
    return fields


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    """The number that a pattern finds."""
    match = pattern.search(text)
    return int(next(group for group in match.groups() if group).replace(",", "")) if match else None


def _positive(value: Any) -> int | None:
    """A number of tokens in an answer; None if it is none."""
    return value if type(value) is int and value > 0 else None


def _piece(piece: Any) -> str:
    """The text of a token: llama.cpp writes one that is no UTF-8 by itself as a list of bytes."""
    return piece if isinstance(piece, str) else bytes(piece).decode("utf-8", errors="replace")
