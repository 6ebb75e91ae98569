"""The slash commands: one registry, from which help and completion are made too. No torch, no screen."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from chat import store
from chat.context import STRATEGIES
from chat.events import Answer, Notice
from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from chat.agent import Agent


@dataclass(frozen=True)
class Command:
    """`run` takes the agent and what stands after the command's name."""

    name: str
    arguments: str
    help: str
    run: Callable[[Agent, str], Answer]


COMMANDS: dict[str, Command] = {}
ALIASES = {"exit": "quit", "q": "quit", "bye": "quit", "?": "help"}


def command(arguments: str = "") -> Callable[[Callable[[Agent, str], Answer]], Callable[[Agent, str], Answer]]:
    """Put a function into the registry, under its name; its docstring is its help."""

    def register(run: Callable[[Agent, str], Answer]) -> Callable[[Agent, str], Answer]:
        name = run.__name__.rstrip("_")
        COMMANDS[name] = Command(name, arguments, str(run.__doc__), run)
        return run

    return register


def execute(agent: Agent, line: str) -> Answer:
    """Run one line that begins with a slash; an unknown command is refused with the nearest name."""
    name, _, rest = line.removeprefix("/").partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        raise UsageError(f"no command /{name}; {f'did you mean /{near}?' if near else '/help lists them all'}")
    yield from COMMANDS[name].run(agent, rest.strip())


def nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant; empty where nothing is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


def say(text: str) -> Notice:
    """What a command answers."""
    return Notice("info", text)


@command()
def help_(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """list the commands"""
    width = max(len(f"{one.name} {one.arguments}") for one in COMMANDS.values())
    yield say("\n".join(f"/{f'{one.name} {one.arguments}':<{width}}  {one.help}" for one in COMMANDS.values()))


@command()
def quit_(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """leave; the conversation is kept"""
    yield from ()
    raise EOFError


@command("[FILE]")
def save(agent: Agent, rest: str) -> Answer:
    """write the conversation to a file"""
    yield say(f"saved {agent.save(rest)}")


@command("[FILE]")
def load(agent: Agent, rest: str) -> Answer:
    """go on with a saved conversation, by its file or id (nothing: list them)"""
    if not rest:
        kept = [f"{name}  {text[:60]}{'…' * (len(text) > 60)}" for name, text in store.listed()]
        yield say("\n".join(kept) or "no conversation is kept yet")
        return
    path = store.find(rest)
    yield from agent.load(path)


@command()
def clear(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """begin a new conversation under the same system prompt"""
    agent.begin()
    yield say("a new conversation")


@command()
def stats(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """messages, tokens, window, cache, speed, memory"""
    yield say(agent.describe())


@command("[on|off]")
def stream(agent: Agent, rest: str) -> Answer:
    """show replies as they come, or whole"""
    agent.stream = _switch(rest, agent.stream)
    yield say(f"streaming is {_on(agent.stream)}")


@command("[on|off]")
def history(agent: Agent, rest: str) -> Answer:
    """show the model the conversation, or the current message alone"""
    agent.session.configure(history=_switch(rest, agent.session.settings.history))
    yield say(f"history is {_on(agent.session.settings.history)}; the log is kept either way")


@command("TEXT")
def system(agent: Agent, rest: str) -> Answer:
    """set the system prompt ("" for none; nothing: show it)"""
    if rest:
        agent.session.configure(system="" if rest in ('""', "''") else rest)
    yield say(f"system prompt: {agent.session.settings.system or 'none'}")


@command("NAME")
def strategy(agent: Agent, rest: str) -> Answer:
    """what happens when the window is full: none, truncate, sliding, summarise"""
    if rest:
        agent.session.configure(strategy=rest)
    yield say(f"strategy: {agent.session.settings.strategy} (there are: {', '.join(STRATEGIES)})")


@command()
def retry(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """another reply to the last message"""
    yield from agent.session.retry()


@command()
def undo(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """take the last message and its reply back"""
    yield say(f"taken back: {agent.session.undo()}")


@command("TEXT")
def edit(agent: Agent, rest: str) -> Answer:
    """say the last message differently"""
    if not rest:
        raise UsageError("/edit needs the new text of your last message")
    yield from agent.session.edit(rest)


@command()
def continue_(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """go on with the last reply where it was cut off"""
    yield from agent.session.proceed()


@command()
def tokens(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """every token that the model is shown, with its id"""
    yield say(" ".join(f"{number}:{text!r}" for number, text in agent.session.tokens()))


@command()
def prompt(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """the text that the model is shown, control tokens included"""
    yield say("".join(text for _, text in agent.session.tokens()))


@command()
def logprobs(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """the alternatives at each place of the last reply"""
    yield say(agent.alternatives())


@command()
def reasoning(agent: Agent, rest: str) -> Answer:  # noqa: ARG001
    """what the model thought before its last reply"""
    said = agent.session.turns[-1][1:] if agent.session.turns else []
    yield say((said and said[0].get("reasoning")) or "the last reply came without reasoning")


@command("NAME VALUE")
def set_(agent: Agent, rest: str) -> Answer:
    """change how tokens are chosen: temperature, top_p, seed, max_new_tokens, … (default: the model's own)"""
    from engine.decoding.sampling import SamplingParams

    known = {one.name: one.default for one in fields(SamplingParams) if isinstance(one.default, int | float)}
    known["seed"] = 0
    name, _, value = rest.replace("=", " ").partition(" ")
    name = name.replace("-", "_")
    if name not in known:
        near = nearest(name, known)
        raise UsageError(
            f"no setting {name!r}; {f'did you mean {near}?' if near else 'there are: ' + ', '.join(known)}"
        )
    if value.strip() == "default":
        kept = {key: number for key, number in agent.session.settings.sampling.items() if key != name}
        agent.session.configure(sampling=kept)
        yield say(f"{name} = {getattr(agent.session.params, name)}")
        return
    try:
        number: Any = float(value) if isinstance(known[name], float) else int(value)
    except ValueError:
        raise UsageError(f"{name} is a number, not {value!r}") from None
    sampling = {**agent.session.settings.sampling, name: number}
    agent.session.configure(sampling=sampling)
    yield say(f"{name} = {number}")


@command("ID")
def model(agent: Agent, rest: str) -> Answer:
    """go on with another model"""
    if not rest:
        raise UsageError(f"/model needs a folder or a hub id; this is {agent.name}")
    yield from agent.change_model(rest)


def _switch(word: str, before: bool) -> bool:
    if word not in ("", "on", "off"):
        raise UsageError(f"on or off, not {word!r}")
    return not before if not word else word == "on"


def _on(state: bool) -> str:
    return "on" if state else "off"


def is_command(line: str) -> bool:
    """Whether a line is one: a slash and a word, so that a path or a comment is none."""
    return line.startswith("/") and line[1:2].isalpha() and "/" not in line.split(maxsplit=1)[0][1:]
