"""A client of any OpenAI-compatible server: ours, vLLM's, llama.cpp's, OpenAI's.

with RemoteModel("http://127.0.0.1:8000", "smollm2") as model:
    for event in model.stream("/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}):
        print(event["choices"][0]["delta"].get("content") or "", end="")
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.remote.address import Address, check_key, read_key
from engine.remote.cancellation import Cancellation
from engine.remote.errors import (
    KEY_HINT,
    RemoteError,
    UnreachableError,
    details_in,
    message_in,
    message_of,
    retry_after,
    said,
)
from engine.remote.sse import events
from engine.runtime.errors import quote

if TYPE_CHECKING:
    import httpx2

TRIES = 5
FIRST_WAIT = 0.5  # seconds before the second try; doubled before each further one
MAX_WAIT = 120.0  # seconds that a server may ask to wait
CONNECT_TIMEOUT = 10.0
RETRIED = frozenset({408, 409, 429})  # and all from 500 on
MAX_NAMES = 8  # models listed in a message
TEXT_FIELDS = {  # of /tokenize and /detokenize, with the flag for BOS: of lm-evaluation-harness and vLLM, of llama.cpp
    "prompt": "add_special_tokens",
    "content": "add_special",
}
ABSENT = frozenset({200, 400, 403, 404, 405, 422, 501})  # answers to a request that a server does not know


class RemoteModel:
    """A model of a server. Several threads may use it at once.

    `model` None leaves the choice to the server. `api_key` None: that of the environment; "": none. `timeout`: seconds
    without any byte of an answer. All methods raise `RemoteError`.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None, timeout: float = 600.0) -> None:
        import httpx2

        address = Address.parse(url)
        self.url, self.model, self.timeout = address.shown, model, timeout
        self._address = address
        key = read_key() if api_key is None else api_key
        headers = {"User-Agent": "bareloop"} | ({"Authorization": f"Bearer {check_key(key)}"} if key else {})
        self._has_key = bool(key)
        self._secrets = [secret for secret in (key, address.password) if secret]
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT),
            limits=limits,
            trust_env=not address.is_local,
            verify=address.needs_certificates,
        )
        self._reached = False  # an answer has come: what fails now may work again
        self._closed = threading.Event()
        self._text_field: str | None = None  # the one of TEXT_FIELDS that has worked

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Other threads' requests fail, without further tries."""
        self._closed.set()
        self._client.close()

    def models(self) -> list[dict[str, Any]]:
        """The server's models: objects with an `id`, and what else the server says of them."""
        answer = self._ask("GET", "/v1/models")
        data = answer.get("data")
        if not isinstance(data, list) or not all(isinstance(row, dict) and "id" in row for row in data):
            raise self._garbage("/v1/models", answer)
        return data

    def names(self) -> list[str]:
        """The names of the server's models."""
        return [str(row["id"]) for row in self.models()]

    def check(self) -> None:
        """Raise `RemoteError` if the server cannot be reached or does not have the model, before any work."""
        try:
            names = self.names()
        except RemoteError as error:
            if error.status == 404:  # a server that lists none may have any
                return
            raise
        if self.model is not None and self.model not in names:
            raise RemoteError(self._no_model(names), 404)

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to /v1/completions. `body`: the fields of the request, without `model`."""
        return self._ask("POST", "/v1/completions", self._named(body))

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to /v1/chat/completions. `body`: the fields of the request, without `model`."""
        return self._ask("POST", "/v1/chat/completions", self._named(body))

    def stream(
        self, path: str, body: Mapping[str, Any], cancellation: Cancellation | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the events of a streamed answer. `path`: /completions or /chat/completions.

        Closing the generator closes the connection, so that the server stops. `cancellation` breaks it from another
        thread. Raises `RemoteError` also in the middle of an answer: if the server reports an error, or the connection
        breaks.
        """
        import httpx2

        cancellation = cancellation or Cancellation()
        path = f"/v1/{path.removeprefix('/v1').lstrip('/')}"
        response = self._send("POST", path, {**self._named(body), "stream": True}, read=False)
        try:
            cancellation.attach(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                response.read()
                raise self._garbage(path, response.text)
            finished = False
            for data in events(response.iter_bytes()):
                if data.strip() == "[DONE]":
                    return
                event = self._event(data)
                choices = event.get("choices")
                finished |= isinstance(choices, list) and any(
                    isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
                )
                yield event
            if not finished:
                raise RemoteError(f"the answer of {self.url} ended in the middle; ask again")
        except httpx2.HTTPError as error:
            reason = self._reason(error)
            raise RemoteError(f"the connection to {self.url} broke in the middle of an answer ({reason})") from None
        finally:
            cancellation.detach()
            response.close()

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int] | None:
        """The server's token ids of a text; None if it has no /tokenize."""
        for field, flag in TEXT_FIELDS.items():
            if self._text_field not in (None, field):
                continue
            answer = self._optional("/tokenize", {field: text, flag: add_special_tokens}) or {}
            tokens = answer.get("tokens")
            if isinstance(tokens, list) and (tokens or not text) and all(type(token) is int for token in tokens):
                self._text_field = field if text else self._text_field
                return tokens
        return None

    def tokenize_messages(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any] | None:
        """The answer of /tokenize to a conversation, with `count` and `tokens`; None if the server only takes text.

        If the last message is the assistant's, its text ends the prompt. `options`: further fields of the request.
        Raises `RemoteError` with status 400 also if the chat template rejects the messages.
        """
        continues = bool(messages) and messages[-1]["role"] == "assistant"
        flags = {"add_generation_prompt": not continues, "continue_final_message": continues}
        try:
            answer = self._ask("POST", "/tokenize", self._named({"messages": list(messages), **flags, **options}))
        except RemoteError as error:
            if error.status in ABSENT - {400}:
                return None
            raise
        return answer if type(answer.get("count")) is int and isinstance(answer.get("tokens"), list) else None

    def detokenize(self, tokens: list[int]) -> str | None:
        """The text of the server's token ids; None if it has no /detokenize."""
        answer = self._optional("/detokenize", {"tokens": tokens}) or {}
        return next((text for field in TEXT_FIELDS if isinstance(text := answer.get(field), str)), None)

    def tokenizer_info(self) -> dict[str, Any] | None:
        """The server's special tokens and chat template: bos_token, eos_token, pad_token, chat_template.

        From /tokenizer_info, or llama.cpp's /props; None if the server has neither.
        """
        info = self._optional("/tokenizer_info")
        if info is None and (props := self._optional("/props")) is not None and "chat_template" in props:
            info = {name: props.get(name) for name in ("bos_token", "eos_token", "chat_template")}
        return info

    def max_length(self) -> int | None:
        """The model's window in tokens, as /v1/models (vLLM) or /props (llama.cpp) tells; None if neither does."""
        with contextlib.suppress(RemoteError):
            rows = self.models()
            for row in [row for row in rows if row["id"] == self.model] or rows[:1]:
                for length in (row.get("max_model_len"), row.get("context_length")):
                    if type(length) is int and length > 0:
                        return length
        settings = (self._optional("/props") or {}).get("default_generation_settings")
        length = settings.get("n_ctx") if isinstance(settings, dict) else None
        return length if type(length) is int and length > 0 else None

    def _named(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {**({"model": self.model} if self.model is not None else {}), **body}

    def _optional(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The answer of a path that not every server has; None if this one does not, or wants another request."""
        try:
            return self._ask("GET", path) if body is None else self._ask("POST", path, self._named(body))
        except RemoteError as error:
            if error.status in ABSENT:
                return None
            raise

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the JSON object of the answer."""
        response = self._send(method, path, body)
        try:
            answer = json.loads(response.content)
        except ValueError:
            raise self._garbage(path, response.text) from None
        if not isinstance(answer, dict):
            raise self._garbage(path, answer)
        if "error" in answer and "choices" not in answer:  # some proxies answer errors with status 200
            raise RemoteError(f"{self.url} answered: {said(message_of(answer), self._secrets)}", response.status_code)
        return answer

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, read: bool = True
    ) -> httpx2.Response:
        """Send a request, again if that may help, and return the answer if it is a success. `read`: with its body."""
        import httpx2

        wait = FIRST_WAIT
        for last in (False,) * (TRIES - 1) + (True,):
            pause: float | None = None
            try:
                request = self._client.build_request(method, f"{self._address.root}{path}", json=body)
                response = self._client.send(request, stream=True)
                if read or not response.is_success:
                    response.read()
            except (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError) as error:  # RuntimeError: closed meanwhile
                failure = self._unreachable(error)
                again = isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.ReadTimeout)
                again = again and (self._reached or not isinstance(failure, UnreachableError))
            else:
                self._reached = True
                if response.is_success:
                    return response
                failure = self._refusal(path, response)
                again = response.status_code in RETRIED or response.status_code >= 500
                pause = retry_after(response.headers.get("retry-after"))
                again = again and (pause or 0.0) <= MAX_WAIT
            if last or not again or self._closed.wait(wait if pause is None else pause):
                raise failure from None
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, error: Exception) -> RemoteError:
        """Say why there is no answer."""
        import httpx2

        if isinstance(error, httpx2.ReadTimeout):
            return RemoteError(f"{self.url} did not answer within {self.timeout:g} seconds")
        message = f"no server answers at {self.url} ({self._reason(error)})"
        if self._address.is_local and not self._reached:
            port = f" --port {self._address.port}" if self._address.port else ""
            message += f"; start one: python -m engine.serve -m {self.model or 'MODEL'}{port}"
        is_connecting = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        return UnreachableError(message) if is_connecting else RemoteError(message)

    def _refusal(self, path: str, response: httpx2.Response) -> RemoteError:
        """Say what a server answered in place of a success."""
        status = response.status_code
        message = said(message_in(response.content), self._secrets)
        if status == 401:
            refusal = "refuses the key" if self._has_key else "asks for a key"
            return RemoteError(f"{self.url} {refusal}: {message}; {KEY_HINT}", status)
        if status == 404 and path.endswith("completions"):
            with contextlib.suppress(RemoteError):
                names = self.names()
                if self.model is not None and self.model not in names:
                    return RemoteError(self._no_model(names), status)
        if 300 <= status < 400:
            target = said(response.headers.get("location", "nowhere"), self._secrets)
            return RemoteError(f"{self.url}{path} is elsewhere: {target}; name that server", status)
        return RemoteError(f"{self.url}{path} answered {status}: {message}", status, details_in(response.content))

    def _no_model(self, names: list[str]) -> str:
        listed = ", ".join(map(quote, names[:MAX_NAMES])) or "none"
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return f"{self.url} has no model {quote(self.model)}; it has {listed}{more}"

    def _event(self, data: str) -> dict[str, Any]:
        """The JSON object of an event. Raises `RemoteError` for an error, and for what is no object."""
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise RemoteError(f"{self.url} sent an event that is not an object of JSON: {said(data, self._secrets)}")
        if event.get("error"):
            raise RemoteError(f"{self.url} broke the answer off: {said(message_of(event), self._secrets)}")
        return event

    def _garbage(self, path: str, answer: object) -> RemoteError:
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        message = f"{self.url}{path} did not answer as an OpenAI-compatible server does: {said(text, self._secrets)}"
        return RemoteError(message, 200)

    def _reason(self, error: Exception) -> str:
        return said(str(error) or type(error).__name__, self._secrets).strip('"')
