"""The slash commands: one registry, which /help and completion read too. Loads without torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from chat import store
from chat.context import STRATEGIES
from chat.events import ChatEvents, Notice
from engine.decoding.params import SamplingParams
from engine.runtime.errors import UsageError, quote

if TYPE_CHECKING:
    from chat.workspace import Workspace


@dataclass(frozen=True)
class Command:
    """A command: its name, the arguments as /help shows them, and the function that runs it.

    `run` takes the workspace and the text after the command's name.
    """

    name: str
    arguments: str
    help: str
    run: Callable[[Workspace, str], ChatEvents]


COMMANDS: dict[str, Command] = {}
ALIASES = {"exit": "quit", "q": "quit", "bye": "quit", "?": "help"}


def command(
    arguments: str = "",
) -> Callable[[Callable[[Workspace, str], ChatEvents]], Callable[[Workspace, str], ChatEvents]]:
    """Register a function as the command of its name; its docstring is the help text."""

    def register(run: Callable[[Workspace, str], ChatEvents]) -> Callable[[Workspace, str], ChatEvents]:
        name = run.__name__.rstrip("_")
        COMMANDS[name] = Command(name, arguments, str(run.__doc__), run)
        return run

    return register


def execute(workspace: Workspace, line: str) -> ChatEvents:
    """Run a line that begins with a slash. An unknown command is an error that names the closest one."""
    name, _, rest = line.removeprefix("/").partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        match = closest(name, COMMANDS)
        hint = f"did you mean /{match}?" if match else "/help lists all commands"
        raise UsageError(f"unknown command {quote(f'/{name}')}; {hint}")
    yield from COMMANDS[name].run(workspace, rest.strip())


def is_command(line: str) -> bool:
    """Whether a line is a command: a slash and a word. A path or a `//` comment is not."""
    return line.startswith("/") and line[1:2].isalpha() and "/" not in line.split(maxsplit=1)[0][1:]


def closest(name: str, known: Iterable[str]) -> str:
    """The most similar known name, or an empty string if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


def info(text: str) -> Notice:
    """A command's output."""
    return Notice("info", text)


@command()
def help_(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """list the commands"""
    width = max(len(f"{entry.name} {entry.arguments}") for entry in COMMANDS.values())
    yield info("\n".join(f"/{f'{entry.name} {entry.arguments}':<{width}}  {entry.help}" for entry in COMMANDS.values()))


@command()
def quit_(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """leave; the conversation is kept"""
    yield from ()
    raise EOFError


@command("[FILE]")
def save(workspace: Workspace, rest: str) -> ChatEvents:
    """write the conversation to a file"""
    yield info(f"saved {workspace.save(rest)}")


@command("[FILE]")
def load(workspace: Workspace, rest: str) -> ChatEvents:
    """continue a saved conversation, by file or id (without one: list them)"""
    if not rest:
        rows = [f"{name}  {text[:60]}{'…' * (len(text) > 60)}" for name, text in store.listed()]
        yield info("\n".join(rows) or "there are no saved conversations yet")
        return
    path = store.find(rest)
    yield from workspace.load(path)


@command()
def clear(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """start a new conversation with the same settings"""
    workspace.begin()
    yield info("new conversation")


@command()
def stats(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show messages, tokens, window, cache, speed, memory"""
    from chat.reports import statistics

    yield info(statistics(workspace))


@command("[on|off]")
def stream(workspace: Workspace, rest: str) -> ChatEvents:
    """show replies token by token, or whole"""
    workspace.stream = _toggle(rest, workspace.stream)
    yield info(f"streaming is {_on_or_off(workspace.stream)}")


@command("[on|off]")
def history(workspace: Workspace, rest: str) -> ChatEvents:
    """give the model the whole conversation, or only the current message"""
    workspace.session.configure(history=_toggle(rest, workspace.session.settings.history))
    yield info(f"history is {_on_or_off(workspace.session.settings.history)}; all messages are kept either way")


@command("TEXT")
def system(workspace: Workspace, rest: str) -> ChatEvents:
    """set the system prompt ("" removes it; without TEXT: show it)"""
    if rest:
        workspace.session.configure(system="" if rest in ('""', "''") else rest)
    yield info(f"system prompt: {workspace.session.settings.system or 'none'}")


@command("NAME")
def strategy(workspace: Workspace, rest: str) -> ChatEvents:
    """what to do when the window is full: none, truncate, sliding, summarise"""
    if rest:
        workspace.session.configure(strategy=rest)
    yield info(f"strategy: {workspace.session.settings.strategy} (choices: {', '.join(STRATEGIES)})")


@command()
def retry(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """get another reply to the last message"""
    yield from workspace.session.retry()


@command()
def undo(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """remove the last message and its reply"""
    yield info(f"removed: {workspace.session.undo()}")


@command("TEXT")
def edit(workspace: Workspace, rest: str) -> ChatEvents:
    """replace the last message, and get a new reply"""
    if not rest:
        raise UsageError("/edit needs the new text of your last message")
    yield from workspace.session.edit(rest)


@command()
def continue_(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """continue the last reply where it was cut off"""
    yield from workspace.session.proceed()


@command()
def tokens(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show every token of the prompt, with its id"""
    yield info(" ".join(f"{token}:{text!r}" for token, text in workspace.session.tokens()))


@command()
def prompt(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show the text of the prompt, with control tokens"""
    yield info(workspace.session.prompt_text())


@command()
def logprobs(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show the probability of each token of the last reply, and the alternatives"""
    from chat.reports import alternatives

    yield info(alternatives(workspace.session))


@command()
def reasoning(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show the reasoning before the last reply"""
    replies = workspace.session.turns[-1][1:] if workspace.session.turns else []
    yield info((replies and replies[0].get("reasoning")) or "the last reply has no reasoning")


@command("NAME VALUE")
def set_(workspace: Workspace, rest: str) -> ChatEvents:
    """set a sampling parameter: temperature, top_p, seed, max_new_tokens, … (`default`: the model's own)"""
    session = workspace.session
    known = {entry.name: entry.default for entry in fields(SamplingParams) if isinstance(entry.default, int | float)}
    known["seed"] = 0
    name, _, value = rest.replace("=", " ").partition(" ")
    name = name.replace("-", "_")
    if name not in known:
        match = closest(name, known)
        hint = f"did you mean {match}?" if match else f"use one of: {', '.join(known)}"
        raise UsageError(f"unknown setting {quote(name)}; {hint}")
    if value.strip() == "default":
        sampling = {key: number for key, number in session.settings.sampling.items() if key != name}
        session.configure(sampling=sampling)
        value = getattr(session.params, name) if session.knows(name) else "as the server sets it"
        yield info(f"{name} = {value}")
        return
    try:
        number: Any = float(value) if isinstance(known[name], float) else int(value)
    except ValueError:
        kind = "a number" if isinstance(known[name], float) else "a whole number"
        raise UsageError(f"{name} needs {kind}, not {quote(value)}") from None
    session.configure(sampling={**session.settings.sampling, name: number})
    yield info(f"{name} = {number}")


@command("ID")
def model(workspace: Workspace, rest: str) -> ChatEvents:
    """continue with another model"""
    if not rest:
        raise UsageError(f"/model needs {workspace.session.model.others}; the current model is {workspace.name}")
    yield from workspace.change_model(rest)


def _toggle(argument: str, before: bool) -> bool:
    if argument not in ("", "on", "off"):
        raise UsageError(f"use on or off, not {quote(argument)}")
    return not before if not argument else argument == "on"


def _on_or_off(state: bool) -> str:
    return "on" if state else "off"
