"""How a base model, which has no chat template, is shown a conversation: as a play."""

from __future__ import annotations

from collections.abc import Sequence

from chat.context import Message
from engine.text.tokenizer import Tokenizer

NAMES = {"user": "User", "assistant": "Assistant"}


class PlainTemplate:
    """`User: …`, `Assistant: …`, a line each; the system prompt stands above."""

    STOP = ("\nUser:", "\nAssistant:")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def render(self, messages: Sequence[Message]) -> str:
        """The text, which ends where the assistant speaks next, or inside its reply if that came last."""
        lines = [
            f"{message['content']}\n"
            if message["role"] == "system"
            else f"{NAMES[message['role']]}: {message['content']}"
            for message in messages
        ]
        if not messages or messages[-1]["role"] != "assistant":
            lines.append("Assistant:")
        return "\n".join(lines)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation. What looks like a control token inside a message stays plain text."""
        begin = self.tokenizer.encode("")
        return [*begin, *self.tokenizer.encode_plain(self.render(messages))]
