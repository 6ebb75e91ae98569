"""A chat server whose model echoes, with a template in which a word is a token. It refuses what exceeds its window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.engine.remote.fake_server import Answer, Asked, error, sse

PER_MESSAGE, GENERATION_PROMPT = 3, 2  # tokens that the template adds
REFUSALS = {  # wordings of servers, by their names
    "vllm": "This model's maximum context length is {window} tokens. However, you requested {total} tokens ({prompt} "
    "in the messages, {reply} in the completion). Please reduce the length of the messages or completion.",
    "vllm-2": "'max_tokens' or 'max_completion_tokens' is too large: {reply}. This model's maximum context length is "
    "{window} tokens and your request has {prompt} input tokens ({reply} > {window} - {prompt}).",
    "vllm-3": "This model's maximum context length is {window} tokens. However, you requested {reply} output tokens "
    "and your prompt contains at least {prompt} input tokens, for a total of at least {total} tokens.",
    "llama.cpp": "request ({prompt} tokens) exceeds the available context size ({window} tokens), try increasing it",
    "openai": "This model's maximum context length is {window} tokens. However, your messages resulted in {prompt} "
    "tokens. Please reduce the length of the messages.",
    "tgi": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= {window}. Given: {prompt} `inputs` "
    "tokens and {reply} `max_new_tokens`",
    "ours": "the prompt is too large",  # with numbers in fields
    "no numbers": "the request exceeds the available context size. try increasing the context size",
}


def chunk(delta: Mapping[str, Any], finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **fields}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


def words(*texts: str, finish_reason: str = "stop") -> list[dict[str, Any]]:
    """The chunks of a reply: its role, its text, its end."""
    start = chunk({"role": "assistant", "content": None})
    return [start, *(chunk({"content": text}) for text in texts), chunk({}, finish_reason)]


@dataclass
class ChatServer:
    """Answers of a server. `reply` makes the chunks from the body of a request, or another answer altogether."""

    window: int = 1000
    names: Sequence[str] = ("small", "org/large")
    tells_window: bool = True
    tokenizes: str = "messages"  # or text, or nothing
    refusal: str = "vllm"
    rejects_system: bool = False
    rejects_later_system: int = 0  # the status of the answer
    reply: Callable[[dict[str, Any]], Any] = lambda body: words("You ", "said: ", body["messages"][-1]["content"])
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of the chat completions that were asked for
    refused: int = 0

    def answer(self, asked: Asked) -> Answer:
        """The answer to a request."""
        if asked.path == "/v1/models":
            length = {"max_model_len": self.window} if self.tells_window else {}
            return Answer({"object": "list", "data": [{"id": name, **length} for name in self.names]})
        if asked.path == "/tokenize" and self.tokenizes != "nothing":
            return self._tokenize(asked.body)
        if asked.path == "/detokenize" and self.tokenizes == "messages":
            return Answer({"prompt": " ".join(f"w{token}" for token in asked.body["tokens"])})
        if asked.path == "/v1/chat/completions":
            return self._complete(asked.body)
        return error("not found", 404)

    def tokens(self, body: Mapping[str, Any]) -> int:
        """Tokens of a prompt."""
        count = sum(len(message["content"].split()) + PER_MESSAGE for message in body["messages"])
        return count + GENERATION_PROMPT * (not body.get("continue_final_message"))

    def _tokenize(self, body: dict[str, Any]) -> Answer:
        if "messages" not in body:
            return Answer({"tokens": list(range(len(body.get("content", body.get("prompt", "")).split())))})
        if self.tokenizes != "messages":
            return Answer({"tokens": []})  # as llama.cpp
        if self.rejects_system and body["messages"][0]["role"] == "system":
            return error("System role not supported", 400)
        if self.rejects_later_system and any(message["role"] == "system" for message in body["messages"][1:]):
            return error("Conversation roles must alternate", self.rejects_later_system)
        count = self.tokens(body)
        length = {"max_model_len": self.window} if self.tells_window else {}
        return Answer({"count": count, "tokens": list(range(count)), **length})

    def _complete(self, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        prompt, reply = self.tokens(body), body.get("max_completion_tokens", body.get("max_tokens", 0))
        if prompt + reply > self.window:
            self.refused += 1
            numbers = {"window": self.window, "prompt": prompt, "reply": reply, "total": prompt + reply}
            refusal = error(REFUSALS[self.refusal].format(**numbers), 422 if self.refusal == "tgi" else 400)
            if self.refusal == "ours":
                fields = {"code": "context_length_exceeded", "n_prompt_tokens": prompt, "n_ctx": self.window}
                refusal.content["error"].update(fields)
            return refusal
        chunks = self.reply(body)
        if isinstance(chunks, Answer):
            return chunks
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": len(chunks) - 2,
            "prompt_tokens_details": {"cached_tokens": prompt // 2},
        }
        return Answer(sse(*chunks, {"choices": [], "usage": usage}))
