"""The screen: input with history and completion, replies as Markdown while they come, a meter below."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.spinner import Spinner
from rich.text import Text

from chat import store
from chat.agent import Agent
from chat.commands import COMMANDS, is_command
from chat.context import STRATEGIES
from chat.events import Notice, Piece, Reply
from chat.session import Session
from engine.cli.parser import printable
from engine.runtime.errors import BareloopError

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

FENCE = "```"


class Terminal:
    """A conversation on a screen."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.console = Console(highlight=False)
        self.meter = "/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves"
        self.leaving = False  # Ctrl-C has been pressed at an empty prompt
        self.input: PromptSession[str] = PromptSession(
            history=_input_history(agent.autosave),
            completer=Commands(),
            complete_while_typing=False,
            key_bindings=keys(self),
            bottom_toolbar=lambda: "Ctrl-C again, or Ctrl-D, leaves" if self.leaving else self.meter,
        )

    def talk(self) -> None:
        """Until the user leaves."""
        while True:
            draft, self.agent.draft = self.agent.draft, ""
            try:
                line = self.input.prompt("> ", default=draft)
                self.leaving = False
                if line.strip():
                    self.take(line)
            except EOFError:
                return

    def take(self, line: str) -> None:
        """Show what one line does; Ctrl-C ends the reply and keeps what was said."""
        turns = self.agent.session.turns
        before = len(turns)
        with contextlib.closing(self.agent.take(line)) as events:
            try:
                self.show(events)
            except KeyboardInterrupt:
                events.close()
                cut = bool(turns) and turns[-1][-1].get("finish_reason") == "cancelled"
                if is_command(line.strip()) or len(turns) > before:
                    self.tell(Notice("stopped", f"stopped{'; /continue goes on, /retry begins again' * cut}"))
                else:
                    self.agent.draft = line
                    self.tell(Notice("stopped", "stopped before a word came; the message is taken back"))
            except BareloopError as error:
                self.tell(Notice("error", str(error)))
        with contextlib.suppress(BareloopError):  # what is wrong is told when a message is sent
            self.meter = meter(self.agent.session)

    def show(self, events: Iterable[Notice | Piece | Reply]) -> None:
        """Write what happens as it happens: finished blocks stay, what may still change stands in a live line below."""
        blocks = Blocks()
        with Live(Spinner("dots", style="dim"), console=self.console, transient=True) as live:
            try:
                for event in events:
                    match event:
                        case Piece(text) if self.agent.stream:
                            for block in blocks.push(printable(text)):
                                self.console.print(markdown(block))
                            live.update(self._end_of(blocks.rest))
                        case Piece(text):
                            blocks.rest += printable(text)
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
            self.console.print(markdown(rest))

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


def markdown(text: str) -> Markdown:
    """A reply as Markdown in which nothing that a model wrote is lost: tags are text, and lines stay lines."""
    result = Markdown("")
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    result.parsed = parser.parse(text)
    for token in result.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return result


class _Kept(FileHistory):
    """Lines of input in a file; where it cannot be written, they are only remembered."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def _input_history(kept: bool) -> History:
    place = store.folder().parent / "input"
    try:
        if kept:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch(mode=0o600)
            return _Kept(str(place))
    except OSError:
        pass
    return InMemoryHistory()


def keys(terminal: Terminal) -> KeyBindings:
    """Ctrl-C empties the line; twice on an empty one it leaves. Alt-Enter begins a new line."""
    bindings = KeyBindings()

    @bindings.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        elif terminal.leaving:
            event.app.exit(exception=EOFError)
        else:
            terminal.leaving = True
            event.app.invalidate()

    @bindings.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def meter(session: Session) -> str:
    """How full the window is, and how fast the last reply was and how much of its prompt was remembered."""
    window = session.budget.window
    used = session.count(session.shown()) if session.turns else 0
    filled = f"{used:,}/{window:,} ({used / window:.0%})"
    if not session.statistics.replies:
        return filled
    last = session.statistics.replies[-1]
    return f"{filled} · {last.tokens_per_second:.0f} tok/s · TTFT {last.ttft:.2f} s · {last.cached_tokens:,} cached"


def talk(agent: Agent, opening: Iterable[Any] = ()) -> None:
    """Greet, show what a loaded conversation says, and talk."""
    terminal = Terminal(agent)
    window = agent.session.budget.window
    terminal.tell(Notice("greeting", f"{agent.name}, window {window:,} tokens; /help lists the commands"))
    terminal.show(opening)
    terminal.talk()
