"""The prompt format for base models, which have no chat template: a script of User and Assistant."""

from __future__ import annotations

from collections.abc import Sequence

from chat.context import Message
from chat.images import count_images
from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer

NAMES = {"user": "User", "assistant": "Assistant"}


class PlainTemplate:
    """One line per message, `User: …` or `Assistant: …`, below the system prompt."""

    STOP = ("\nUser:", "\nAssistant:")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text. It ends where the assistant speaks next, or inside the reply to be continued.

        Raises `BareloopError` if a message has an image.
        """
        if count_images(messages):
            raise BareloopError(
                "a base model without a chat template takes no images; use a vision-language model such as SmolVLM"
            )
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
        """Token ids of the prompt. Text in a message that looks like a control token is encoded as plain text."""
        prefix = self.tokenizer.encode("")
        return [*prefix, *self.tokenizer.encode_plain(self.render(messages))]
