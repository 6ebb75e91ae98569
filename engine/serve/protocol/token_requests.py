# ruff: noqa: RUF009 `option` and `required` are dataclasses.field with a rule
"""The requests of /tokenize, /detokenize and /v1/embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from engine.serve.protocol import unsupported
from engine.serve.protocol.conditions import ExactlyOne, NotBoth
from engine.serve.protocol.fields import Fields, option, required
from engine.serve.protocol.requests import MAX_TOKENS, MESSAGES, MODEL, PROMPT, TEMPLATE_ARGUMENTS, TOKEN, TOOLS
from engine.serve.protocol.rules import Flag, Integer, Items, Neutral, Text


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
    CONDITIONS = (
        ExactlyOne(("prompt", "content", "messages")),
        NotBoth("add_generation_prompt", "continue_final_message"),
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
    input: str | list[str] | list[int] | list[list[int]] = required(PROMPT, "Text, token ids, or a list of either.")
    encoding_format: str = option(Text(choices=("float", "base64")), "base64: float32, little-endian.", "float")
    dimensions: int | None = option(Integer(1, MAX_TOKENS), "Number of dimensions.")

    IGNORED = ("user",)
