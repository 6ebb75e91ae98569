"""Failures that a user can act on: one line with the value, the limit and the way out."""

LONGEST_LINE = 600  # characters; values come from files and may be of any size


class BareloopError(Exception):
    """An expected failure at a border (file, hub, device, model); programs print it and exit with 1."""

    def __init__(self, message: str) -> None:
        line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in message)
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 60]} … {line[-50:]}")


class UsageError(BareloopError):
    """What was asked for makes no sense (a flag, a name, a number); programs exit with 2."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, as Python, the CPU's allocator and CUDA say it."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


class TemplateError(BareloopError):
    """A chat template's own objection to the messages, such as a role that it does not know."""
