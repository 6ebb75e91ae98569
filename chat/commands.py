"""The slash commands, except those of images and of the memory, which have files of their own. Loads without torch."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields
from itertools import groupby
from typing import TYPE_CHECKING, Any

from chat import store
from chat.context import STRATEGIES
from chat.conversation.events import ChatEvents
from chat.registry import COMMANDS, TERMINAL, closest, command, execute, info, is_command, known
from engine.decoding.params import SamplingParams
from engine.runtime.errors import UsageError, quote

if TYPE_CHECKING:
    from chat.workspace import Workspace

__all__ = ["COMMANDS", "MAX_TITLE", "execute", "is_command", "known"]
MAX_TITLE = 200  # characters


@command()
def help_(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """list the commands"""
    entries = known(workspace)
    width = max(len(f"{entry.name} {entry.arguments}") for entry in entries)
    yield info("\n".join(f"/{f'{entry.name} {entry.arguments}':<{width}}  {entry.help}" for entry in entries))


@command(screens=TERMINAL)
def quit_(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """leave; the conversation is kept"""
    yield from ()
    raise EOFError


@command("[FILE]", TERMINAL)
def save(workspace: Workspace, rest: str) -> ChatEvents:
    """write the conversation to a file"""
    yield info(f"saved {workspace.save(rest)}")


@command("[FILE]", TERMINAL)
def load(workspace: Workspace, rest: str) -> ChatEvents:
    """continue a saved conversation, by file or id (without one: list them)"""
    if not rest:
        rows = [f"{name}  {text}" for name, text in store.listed()]
        yield info("\n".join(rows) or "there are no saved conversations yet")
        return
    path = store.find(rest)
    yield from workspace.load(path)


@command(screens=TERMINAL)
def clear(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """start a new conversation with the same settings"""
    workspace.begin()
    yield info("new conversation")


@command()
def stats(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show messages, tokens, window, cache, speed, memory"""
    from chat.reports import statistics

    yield info(statistics(workspace))


@command("[on|off]", TERMINAL)
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


@command("[N]")
def retry(workspace: Workspace, rest: str) -> ChatEvents:
    """get another reply to message N (default: the last)"""
    yield from workspace.session.retry(_optional_index(rest))


@command()
def undo(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """remove the last message and its reply; another version of them is shown, if there is one"""
    session = workspace.session
    index = session.index()
    text = f"removed: {session.undo()}"
    if index < len(session.turns):
        place, count = session.tree.version(index)
        text += f"\nmessage {index + 1} now shows version {place + 1} of {count}, with what followed it"
    yield info(text)


@command("TEXT")
def edit(workspace: Workspace, rest: str) -> ChatEvents:
    """replace the last message, and get a new reply; its images stay, unless /image has named others"""
    if not rest:
        raise UsageError("/edit needs the new text of your last message")
    yield from workspace.session.edit(rest, images=workspace.images or None)


@command("N TEXT")
def branch(workspace: Workspace, rest: str) -> ChatEvents:
    """replace message N and go on from there, with images as /edit; what followed is kept as another version"""
    number, _, text = rest.partition(" ")
    if not text.strip():
        raise UsageError("/branch needs the number of a message and its new text")
    yield from workspace.session.edit(text.strip(), _index(number, "a message"), workspace.images or None)


@command("N [K]")
def version(workspace: Workspace, rest: str) -> ChatEvents:
    """show version K of message N (without K: list its versions)"""
    from chat.reports import versions

    session, (number, _, chosen) = workspace.session, rest.partition(" ")
    if not number:
        raise UsageError("/version needs the number of a message, and that of a version")
    turn = session.index(_index(number, "a message"))
    if not chosen:
        yield info(versions(session, turn))
        return
    session.choose(turn, _index(chosen, "a version"))
    place, count = session.tree.version(turn)
    yield info(f"version {place + 1} of {count} of message {turn + 1}")


@command("N TOKEN CHOICE")
def fork(workspace: Workspace, rest: str) -> ChatEvents:
    """go on from another token of reply N, numbered as /logprobs does"""
    words = rest.split()
    if len(words) != 3:
        raise UsageError("/fork needs three numbers: of a message, of a token of its reply, of an alternative")
    session = workspace.session
    with closing(session.fork(*map(_index, words, ("a message", "a token", "an alternative")))) as events:
        first = next(events)
        if workspace.screen == "terminal":  # which shows only what is new
            yield info(f"going on from: {session.turns[-1][1]['content']}")
        yield first
        yield from events


@command("TEXT")
def title(workspace: Workspace, rest: str) -> ChatEvents:
    """name the conversation ("" removes the name; without TEXT: show it)"""
    if rest:
        name = " ".join(rest.split())
        if len(name) > MAX_TITLE:
            raise UsageError(f"a title has up to {MAX_TITLE} characters; this one has {len(name)}")
        workspace.session.title = "" if name in ('""', "''") else name
    yield info(f"title: {workspace.session.title or 'none'}")


@command()
def continue_(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """continue the last reply where it was cut off"""
    yield from workspace.session.proceed()


@command()
def tokens(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show every token of the prompt, with its id; equal ones in a row, such as an image's, once with their number"""
    runs = ((entry, len(list(run))) for entry, run in groupby(workspace.session.tokens()))
    yield info(" ".join(f"{token}:{text!r}{f' x {count}' if count > 1 else ''}" for (token, text), count in runs))


@command()
def prompt(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show the text of the prompt, with control tokens"""
    yield info(workspace.session.prompt_text())


@command("[N]")
def logprobs(workspace: Workspace, rest: str) -> ChatEvents:
    """show the probability of each token of reply N (default: the last), and the alternatives"""
    from chat.reports import alternatives

    yield info(alternatives(workspace.session, _optional_index(rest)))


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


def _index(text: str, what: str) -> int:
    """An index from 0 for a number that users count from 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"{quote(text.strip())} is not the number of {what}; they count from 1")
    return int(text) - 1


def _optional_index(text: str) -> int | None:
    return _index(text, "a message") if text else None


def _toggle(argument: str, before: bool) -> bool:
    if argument not in ("", "on", "off"):
        raise UsageError(f"use on or off, not {quote(argument)}")
    return not before if not argument else argument == "on"


def _on_or_off(state: bool) -> str:
    return "on" if state else "off"


from chat import image_commands, memory_commands  # noqa: E402, F401  # registered last, as /help lists them
