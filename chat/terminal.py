"""The terminal: input with history and completion, replies streamed as Markdown, a status line at the bottom."""

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
from chat.conversation.events import Notice, Piece, Reply
from chat.conversation.session import Session
from engine.cli.parser import printable
from engine.runtime.errors import BareloopError
from engine.runtime.wording import plural

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

FENCE = "```"


class Terminal:
    """A conversation in a terminal."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.console = Console(highlight=False)
        self.meter = "/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves"
        self.leaving = False  # Ctrl-C was pressed at an empty prompt; the second one leaves
        self.input: PromptSession[str] = PromptSession(
            history=_input_history(agent.autosave),
            completer=CommandCompleter(),
            complete_while_typing=False,
            key_bindings=keys(self),
            bottom_toolbar=lambda: "Ctrl-C again, or Ctrl-D, leaves" if self.leaving else self.meter,
        )

    def talk(self) -> None:
        """Read and handle lines until the user leaves."""
        while True:
            draft, self.agent.draft = self.agent.draft, ""
            self.agent.images += self.agent.draft_images
            self.agent.draft_images = []
            try:
                line = self.input.prompt("> ", default=draft)
                self.leaving = False
                if line.strip():
                    self.handle(line)
            except EOFError:
                return

    def handle(self, line: str) -> None:
        """Handle one line and show its events. Ctrl-C stops the reply and keeps its text."""
        turns = self.agent.session.turns
        turns_before = len(turns)
        with contextlib.closing(self.agent.handle(line)) as events:
            try:
                self.show(events)
            except KeyboardInterrupt:
                events.close()
                cut = bool(turns) and turns[-1][-1].get("finish_reason") == "cancelled"
                if is_command(line.strip()) or len(turns) > turns_before:
                    self.notify(Notice("stopped", f"stopped{'; /continue resumes it, /retry starts over' * cut}"))
                else:
                    self.agent.draft = line
                    self.notify(
                        Notice("stopped", "stopped before the first token; your message is back in the input line")
                    )
            except BareloopError as error:
                self.notify(Notice("error", str(error)))
        with contextlib.suppress(BareloopError):  # the error is shown when a message is sent
            self.meter = meter(self.agent.session, len(self.agent.images))

    def show(self, events: Iterable[Notice | Piece | Reply]) -> None:
        """Write events as they come: finished blocks are printed, the unfinished one is redrawn in place below them."""
        blocks = MarkdownBlocks()
        with Live(Spinner("dots", style="dim"), console=self.console, transient=True) as live:
            try:
                for event in events:
                    match event:
                        case Piece(text=""):
                            pass
                        case Piece(text) if self.agent.stream:
                            for block in blocks.push(printable(text)):
                                self.console.print(markdown(block))
                            live.update(self._last_lines(blocks.pending))
                        case Piece(text):
                            blocks.pending += printable(text)
                        case Notice():
                            self._finish(blocks)
                            self.notify(event)
            finally:
                live.update("")
                self._finish(blocks)

    def notify(self, notice: Notice) -> None:
        """Print a notice: dim, an error in red, the output of a command unstyled."""
        style = "" if notice.kind == "info" else "red" if notice.kind == "error" else "dim"
        self.console.print(Text(printable(notice.text), style=style))

    def _finish(self, blocks: MarkdownBlocks) -> None:
        """Print the unfinished block; also after an interrupt."""
        text = blocks.flush()
        if text.strip():
            self.console.print(markdown(text))

    def _last_lines(self, text: str) -> Text:
        """The end of a text, as many lines as fit on the screen."""
        lines = Text(text).wrap(self.console, self.console.width)
        return Text("\n").join(lines[-max(1, self.console.height - 3) :])


class MarkdownBlocks:
    """Splits streamed Markdown into finished blocks."""

    def __init__(self) -> None:
        self.pending = ""  # the unfinished block

    def push(self, text: str) -> Iterator[str]:
        """Add text. Yield the blocks that it finishes; a block ends at an empty line outside of code."""
        self.pending += text
        start, fenced, position = 0, False, 0
        finished = []
        for line in self.pending.splitlines(keepends=True):
            position += len(line)
            if line.lstrip().startswith(FENCE):
                fenced = not fenced
            elif not line.strip() and line.endswith("\n") and not fenced:
                if self.pending[start:position].strip():
                    finished.append(self.pending[start:position])
                start = position
        self.pending = self.pending[start:]
        yield from finished

    def flush(self) -> str:
        """Return the unfinished block and start over."""
        text, self.pending = self.pending, ""
        return text


class CommandCompleter(Completer):
    """Completes command names, and the arguments of some commands."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            yield from (
                Completion(command.name, -len(name), display_meta=command.help)
                for command in COMMANDS.values()
                if command.name.startswith(name)
            )
        elif name in ("load", "save", "image"):
            yield from PathCompleter(expanduser=True).get_completions(Document(rest), complete_event)
        else:
            choices = {"strategy": STRATEGIES, "stream": ("on", "off"), "history": ("on", "off")}.get(name, ())
            yield from (Completion(choice, -len(rest)) for choice in choices if choice.startswith(rest))


def markdown(text: str) -> Markdown:
    """Render a reply as Markdown without losing text: HTML tags are shown, and line breaks are kept."""
    result = Markdown("")
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    result.parsed = parser.parse(text)
    for token in result.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return result


class _TolerantFileHistory(FileHistory):
    """Input history in a file; a line that cannot be written is kept in memory only."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def _input_history(persistent: bool) -> History:
    path = store.folder().parent / "input"
    try:
        if persistent:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            return _TolerantFileHistory(str(path))
    except OSError:
        pass
    return InMemoryHistory()


def keys(terminal: Terminal) -> KeyBindings:
    """Ctrl-C clears the line; pressed twice on an empty line it leaves. Alt-Enter inserts a line break."""
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


def meter(session: Session, images: int = 0) -> str:
    """The status line: how full the window is; speed and cached prompt tokens of the last reply.

    `images`: how many go with the next message.
    """
    window = session.budget.window
    used = session.count(session.visible_messages()) if session.turns else 0
    usage = f"{used:,}/{window:,} ({used / window:.0%})"
    if session.memory is not None:
        recalled = len(session.memory.recalled.pieces)
        usage += f" · {plural(recalled, 'memory')}"
    if images:
        usage += f" · {plural(images, 'image')} for the next message"
    if (last := session.statistics.last) is None:
        return usage
    drafts = session.model.drafts
    share = "" if drafts is None else f" ({drafts.share_right:.0%} of drafts right)"
    speed = f"{last.tokens_per_second:.0f} tok/s{share}"
    return f"{usage} · {speed} · TTFT {last.ttft:.2f} s · {last.cached_tokens:,} cached"


def talk(agent: Agent, opening: Iterable[Any] = ()) -> None:
    """Greet the user, show the opening notices, and read lines until the user leaves."""
    terminal = Terminal(agent)
    window = agent.session.budget.window
    terminal.notify(Notice("greeting", f"{agent.name}, window {window:,} tokens; /help lists the commands"))
    terminal.show(opening)
    terminal.talk()
