"""The screen: input with history and completion, replies as Markdown while they come, a meter below."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.spinner import Spinner
from rich.text import Text

from chat import store
from chat.agent import Agent
from chat.commands import COMMANDS
from chat.context import STRATEGIES
from chat.events import Notice, Piece, Reply
from engine.cli import printable
from engine.errors import BareloopError

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

FENCE = "```"


class Terminal:
    """A conversation on a screen."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.console = Console(highlight=False)
        place = store.folder().parent / "input"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(mode=0o600)
        self.input: PromptSession[str] = PromptSession(
            history=FileHistory(str(place)),
            completer=Commands(),
            complete_while_typing=False,
            key_bindings=keys(),
            bottom_toolbar=lambda: self.meter,
        )
        self.meter = "/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves"

    def talk(self) -> None:
        """Until the user leaves."""
        while True:
            try:
                line = self.input.prompt("> ")
                if line.strip():
                    self.take(line)
            except EOFError:
                return

    def take(self, line: str) -> None:
        """Show what one line does; Ctrl-C ends the reply and keeps what was said."""
        with contextlib.closing(self.agent.take(line)) as events:
            try:
                self.show(events)
            except KeyboardInterrupt:
                events.close()
                self.tell(Notice("stopped", "stopped; /continue goes on, /retry begins again"))
            except BareloopError as error:
                self.tell(Notice("error", str(error)))

    def show(self, events: Iterable[Notice | Piece | Reply]) -> None:
        """Write what happens as it happens: finished blocks stay, what may still change stands in a live line below."""
        blocks = Blocks()
        with Live(Spinner("dots", style="dim"), console=self.console, transient=True) as live:
            try:
                for event in events:
                    match event:
                        case Piece(text) if self.agent.stream:
                            for block in blocks.push(printable(text)):
                                self.console.print(Markdown(block))
                            live.update(self._end_of(blocks.rest))
                        case Piece(text):
                            blocks.rest += printable(text)
                        case Reply():
                            self.meter = meter(event)
                        case Notice():
                            self._finish(blocks)
                            self.tell(event)
            finally:
                live.update("")
                self._finish(blocks)

    def tell(self, notice: Notice) -> None:
        """A dim line, or a command's answer as it is."""
        style = "" if notice.kind == "info" else "red" if notice.kind == "error" else "dim"
        self.console.print(Text(printable(notice.text), style=style))

    def _finish(self, blocks: Blocks) -> None:
        """Write what has not been written yet; after an interrupt, too."""
        rest = blocks.take()
        if rest.strip():
            self.console.print(Markdown(rest))

    def _end_of(self, text: str) -> Text:
        """What of a text fits on the screen."""
        lines = Text(text).wrap(self.console, self.console.width)
        return Text("\n").join(lines[-max(1, self.console.height - 3) :])


class Blocks:
    """Markdown as it streams: blocks that are finished are given out once, the rest waits."""

    def __init__(self) -> None:
        self.rest = ""

    def push(self, text: str) -> Iterator[str]:
        """Take more text, and give the blocks that it finishes: up to an empty line outside of code."""
        self.rest += text
        start, fenced, position = 0, False, 0
        done = []
        for line in self.rest.splitlines(keepends=True):
            position += len(line)
            if line.lstrip().startswith(FENCE):
                fenced = not fenced
            elif not line.strip() and line.endswith("\n") and not fenced:
                if self.rest[start:position].strip():
                    done.append(self.rest[start:position])
                start = position
        self.rest = self.rest[start:]
        yield from done

    def take(self) -> str:
        """All that has not been given out; what comes next is another text."""
        taken, self.rest = self.rest, ""
        return taken


class Commands(Completer):
    """Names of commands, and what may follow some of them."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            yield from (
                Completion(one.name, -len(name), display_meta=one.help)
                for one in COMMANDS.values()
                if one.name.startswith(name)
            )
        elif name in ("load", "save"):
            yield from PathCompleter(expanduser=True).get_completions(Document(rest), complete_event)
        else:
            words = {"strategy": STRATEGIES, "stream": ("on", "off"), "history": ("on", "off")}.get(name, ())
            yield from (Completion(word, -len(rest)) for word in words if word.startswith(rest))


def keys() -> KeyBindings:
    """Ctrl-C empties the line, or leaves where it is empty; Alt-Enter begins a new line."""
    bindings = KeyBindings()

    @bindings.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    @bindings.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def meter(reply: Reply) -> str:
    """How full the window is, how fast it went, how much was remembered."""
    used = reply.prompt_tokens + reply.completion_tokens
    return (
        f"{used:,}/{reply.window:,} ({used / reply.window:.0%}) · {reply.tokens_per_second:.0f} tok/s · "
        f"TTFT {reply.ttft:.2f} s · {reply.cached_tokens:,} cached"
    )


def talk(agent: Agent, opening: Iterable[Any] = ()) -> None:
    """Greet, show what a loaded conversation says, and talk."""
    terminal = Terminal(agent)
    window = agent.session.budget.window
    terminal.tell(Notice("greeting", f"{agent.name}, window {window:,} tokens; /help lists the commands"))
    terminal.show(opening)
    terminal.talk()
