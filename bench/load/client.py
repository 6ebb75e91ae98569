"""Requests to an OpenAI-compatible server, streamed, with the time at which each piece of the answer arrived."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bench.load.records import OK, Record
from engine.remote.address import Address, check_key
from engine.remote.client import TEXT_FIELDS
from engine.remote.errors import message_in, message_of, said
from engine.remote.sse import events
from engine.runtime.errors import BareloopError, quote

if TYPE_CHECKING:
    import httpx2

Prompt = str | list[dict[str, Any]]  # a text, or messages
Reads = list[tuple[float, bytes]]  # the pieces of an answer, each with its time

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
KEEP_ALIVE = 4.0  # seconds; less than the 5 s after which servers close an idle connection
CONNECT_SECONDS = 30.0
TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")  # what a chat chunk may carry


@dataclass(frozen=True)
class Clock:
    """The time, and how to wait for it; tests bring their own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Client:
    """Sends requests and times their answers; an asynchronous context manager.

    Raises `UsageError` for an address that is none.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        endpoint: str = "completions",
        output_tokens: int = 128,
        api_key: str | None = None,
        timeout: float = 600.0,
        clock: Clock | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx2

        address = Address.parse(url)
        self.url = address.shown
        self._secrets = [secret for secret in (api_key, address.password) if secret]
        self.model, self.endpoint, self.output_tokens = model, endpoint, output_tokens
        self.clock = clock or Clock()
        self.optional: dict[str, Any] = {"ignore_eos": True, "stream_options": {"include_usage": True}}
        self.limit_field = "max_tokens"
        self._text_field: str | None = None  # of /tokenize, the one of TEXT_FIELDS that has worked
        self.start = 0.0  # of the clock, when the setting began
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {check_key(api_key)}"
        self._http = httpx2.AsyncClient(
            base_url=address.root,
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS), pool=None),
            limits=httpx2.Limits(keepalive_expiry=KEEP_ALIVE),  # open loops need as many connections as there are
            transport=transport,
            trust_env=not address.is_local,
            verify=address.needs_certificates,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    def begin(self) -> None:
        """Let times count from now."""
        self.start = self.clock.now()

    def now(self) -> float:
        """Seconds since `begin`."""
        return self.clock.now() - self.start

    async def models(self) -> list[str]:
        """The names of the server's models. Raises `BareloopError` if it does not tell them."""
        import httpx2

        try:
            response = await self._http.get("/v1/models")
            if response.status_code != 200:
                raise BareloopError(f"{self.url}/v1/models: {response.status_code}: {self._said(response.content)}")
            return [entry["id"] for entry in response.json()["data"]]
        except httpx2.RequestError as error:
            raise BareloopError(f"cannot reach {self.url}: {describe(error)}") from error
        except (ValueError, KeyError, TypeError):
            raise BareloopError(f"{self.url}/v1/models has no list of models; name one with --model") from None

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of a text without special ones, by the server's /tokenize. None: it has none."""
        import httpx2

        for field, flag in TEXT_FIELDS.items():
            if self._text_field not in (None, field):
                continue
            try:
                response = await self._http.post("/tokenize", json={"model": self.model, field: text, flag: False})
                count = len(response.json()["tokens"]) if response.status_code == 200 else 0
            except (httpx2.RequestError, ValueError, KeyError, TypeError):
                continue
            if count:
                self._text_field = field
                return count
        return None

    async def ask(self, prompt: Prompt) -> Record:
        """Send a request and read its answer. A failure is in the record's `status` and `error`."""
        record, reads = await self.send(prompt)
        read_answer(record, reads)
        return record

    async def send(self, prompt: Prompt, due: float | None = None) -> tuple[Record, Reads]:
        """Send a request and receive its answer, which `read_answer` reads.

        Reading takes milliseconds, and many answers may end together, so it has to wait until nothing is timed.
        """
        import httpx2

        content = json.dumps(self._body(prompt)).encode()
        sent = self.now()
        record = Record(sent if due is None else due, sent)
        reads: Reads = []
        try:
            if not await self._try(record, content, reads):
                await self._try(record, content, reads, last=True)
        except httpx2.TimeoutException as error:
            record.status, record.error = "timeout", describe(error)
        except httpx2.RequestError as error:
            record.status, record.error = "broken", describe(error)
        record.ended = self.now()
        return record, reads

    async def _try(self, record: Record, content: bytes, reads: Reads, last: bool = False) -> bool:
        """Send a request and receive its answer. False: the server had closed a connection that was used before."""
        import httpx2

        is_new = answered = False

        async def trace(event: str, _: dict[str, Any]) -> None:
            nonlocal is_new
            if event == "connection.connect_tcp.started":
                is_new = True
            if event == "http11.send_request_headers.started":  # this client's own queue is no time of the server's
                record.sent = self.now()

        try:
            async with self._http.stream(
                "POST", PATHS[self.endpoint], content=content, extensions={"trace": trace}
            ) as response:
                answered = True
                if response.status_code == 200:
                    async for data in response.aiter_raw():
                        reads.append((self.now(), data))
                else:
                    record.status = str(response.status_code)
                    record.error = self._said(await response.aread())
        except (httpx2.NetworkError, httpx2.RemoteProtocolError):
            if is_new or answered or last:
                raise
            return False
        return True

    def adapt(self, record: Record) -> bool:
        """Leave out or rename a field that the server refused. False: it refused for another reason."""
        if record.status not in ("400", "422"):
            return False
        if "max_completion_tokens" in record.error and self.limit_field == "max_tokens":
            self.limit_field = "max_completion_tokens"
            return True
        refused = [name for name in self.optional if name in record.error]
        for name in refused:
            del self.optional[name]
        return bool(refused)

    def _said(self, body: bytes) -> str:
        return said(message_in(body), self._secrets)

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        limits = {self.limit_field: self.output_tokens, "temperature": 0, "stream": True}
        if self.endpoint == "completions":
            return {"model": self.model, "prompt": prompt, **limits, **self.optional}
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return {"model": self.model, "messages": messages, **limits, **self.optional}


def read_answer(record: Record, reads: Reads) -> None:
    """Fill a record from what arrived when. An event arrives with the read that has its end."""
    if record.status != OK:
        return
    now, data, finished = record.sent, "", False
    try:
        for now, data in timed_events(reads):
            if data == "[DONE]":
                break
            chunk = json.loads(data)
            if chunk.get("error"):
                record.status, record.error, record.ended = "stream", said(message_of(chunk)), now
                return
            choices = chunk.get("choices") or []
            if any(carries_text(choice) for choice in choices):
                record.chunks.append(now)
            if choices:
                record.ended = now
            finished = finished or any(choice.get("finish_reason") for choice in choices)
            if usage := chunk.get("usage"):
                record.prompt_tokens, record.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    except (BareloopError, ValueError, AttributeError, TypeError, KeyError):
        record.status, record.error, record.ended = "stream", f"not a chunk: {quote(data)}", now
        return
    if record.completion_tokens == 0:
        record.completion_tokens, record.has_usage = len(record.chunks), False
    if not finished:
        record.status, record.error = "cut off", "the answer ended without a finish reason"


def carries_text(choice: dict[str, Any]) -> bool:
    """Whether a choice of a chunk has any text: of a completion, of a message, of its reasoning or its calls."""
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(delta.get(name) for name in TEXTS)


def timed_events(reads: Reads) -> Iterator[tuple[float, str]]:
    """The data of server-sent events, each with the time of the read that completed it."""
    now = 0.0

    def pieces() -> Iterator[bytes]:
        nonlocal now
        for now, piece in reads:  # noqa: B007
            yield piece

    for data in events(pieces()):
        yield now, data


def describe(error: Exception) -> str:
    """An error of the connection, which may have no text."""
    return str(error) or type(error).__name__
