"""Errors that a user can act on: one line with the value, the limit and the way out."""

import re

MAX_LINE = 600  # characters of a message
MAX_QUOTE = 80  # characters of a value quoted in a message


class BareloopError(Exception):
    """An expected failure at a boundary (file, hub, device, model). Programs print it and exit with status 1."""

    def __init__(self, message: str) -> None:
        line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in message)
        super().__init__(line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 60]} … {line[-50:]}")


class UsageError(BareloopError):
    """An invalid request (a flag, a name, a number). Programs exit with status 2."""


class TemplateError(BareloopError):
    """An error raised by a chat template about the messages, such as an unknown role."""


def quote(value: object) -> str:
    """`repr(value)` for a message, clipped to 80 characters. Values come from files and may have any size."""
    if isinstance(value, str | bytes) and len(value) > MAX_QUOTE:  # do not escape megabytes first
        value = value[: MAX_QUOTE + 1]
    text = repr(value)
    return text if len(text) <= MAX_QUOTE else f"{text[: MAX_QUOTE - 1]}…"


def clip_quotes(message: str) -> str:
    """Clip quoted values in a message of another library (argparse), as `quote` does for ours."""
    return re.sub(rf"'[^']{{{MAX_QUOTE},}}'", lambda match: f"{match[0][: MAX_QUOTE - 1]}…", message)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type if it has none. Other libraries write pages."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def describe(error: BaseException) -> str:
    """An unexpected exception in one line: its type and the first line of its text, or that memory has run out."""
    return "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {first_line(error)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory has run out, in Python, torch's CPU allocator or CUDA."""
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_memory_error or "can't allocate memory" in str(error)
