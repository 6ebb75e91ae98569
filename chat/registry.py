"""The registry of slash commands: what /help, completion and every screen read. Loads without torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat.conversation.events import ChatEvents, Notice
from engine.runtime.errors import UsageError, quote

if TYPE_CHECKING:
    from chat.workspace import Workspace


@dataclass(frozen=True)
class Command:
    """A command: its name, the arguments as /help shows them, the function that runs it, and where it is for.

    `run` takes the workspace and the text after the command's name.
    """

    name: str
    arguments: str
    help: str
    run: Callable[[Workspace, str], ChatEvents]
    screens: frozenset[str]


BOTH, TERMINAL = frozenset({"terminal", "page"}), frozenset({"terminal"})
COMMANDS: dict[str, Command] = {}
ALIASES = {"exit": "quit", "q": "quit", "bye": "quit", "?": "help"}


def command(
    arguments: str = "", screens: frozenset[str] = BOTH
) -> Callable[[Callable[[Workspace, str], ChatEvents]], Callable[[Workspace, str], ChatEvents]]:
    """Register a function as the command of its name; its docstring is the help text."""

    def register(run: Callable[[Workspace, str], ChatEvents]) -> Callable[[Workspace, str], ChatEvents]:
        name = run.__name__.rstrip("_")
        COMMANDS[name] = Command(name, arguments, str(run.__doc__), run, screens)
        return run

    return register


def execute(workspace: Workspace, line: str) -> ChatEvents:
    """Run a line that begins with a slash. An unknown command is an error that names the closest one."""
    name, _, rest = line.removeprefix("/").partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        match = closest(name, (entry.name for entry in known(workspace)))
        hint = f"did you mean /{match}?" if match else "/help lists all commands"
        raise UsageError(f"unknown command {quote(f'/{name}')}; {hint}")
    if workspace.screen not in COMMANDS[name].screens:
        raise UsageError(f"/{name} is a command of the terminal; the page has its own buttons for that")
    yield from COMMANDS[name].run(workspace, rest.strip())


def known(workspace: Workspace) -> list[Command]:
    """The commands of the workspace's screen."""
    return [entry for entry in COMMANDS.values() if workspace.screen in entry.screens]


def is_command(line: str) -> bool:
    """Whether a line is a command: a slash and a word. A path or a `//` comment is not."""
    return line.startswith("/") and line[1:2].isalpha() and "/" not in line.split(maxsplit=1)[0][1:]


def closest(name: str, known: Iterable[str]) -> str:
    """The most similar known name, or an empty string if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


def info(text: str) -> Notice:
    """A command's output."""
    return Notice("info", text)
