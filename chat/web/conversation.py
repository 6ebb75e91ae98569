"""One open conversation: it handles lines one after another in a thread, and tells its tabs what happens."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from datetime import datetime
from typing import Any, TypeVar

from chat.conversation.events import Notice, Piece, Reply
from chat.images import ImagePart
from chat.web.agent import PageAgent
from chat.web.audience import Audience
from chat.web.draft import Draft
from chat.web.lines import LOG, Run, as_notice
from chat.web.models.interface import Models
from chat.web.own_model import OwnModel
from chat.web.snapshot import Running, encode_tokens, encode_view
from chat.web.streams import PieceEvent, Tab
from engine.runtime.errors import BareloopError
from engine.serve.protocol.errors import ApiError
from engine.serve.threads import in_thread

T = TypeVar("T")


class Conversation:
    """One conversation, with the tabs that show it. Methods are called in the thread of the event loop."""

    def __init__(self, id: str, agent: PageAgent, models: Models, changed: Callable[[], None]) -> None:
        """`changed` is called when the list of conversations shows something else."""
        self.id, self.agent, self.models, self.changed = id, agent, models, changed
        self.model = OwnModel(agent, models)
        self.audience = Audience(id)
        self.run: Run | None = None
        self.warnings: list[str] = []  # about the file, for the user
        self.used = time.monotonic()
        self.updated = datetime.now().astimezone()
        self.is_leaving = False  # it is being deleted
        self._draft = Draft(agent, self.audience)
        self._notices: defaultdict[int, list[Notice]] = defaultdict(list)  # of turns, by their keys
        self._lock = asyncio.Lock()  # who works with the session
        self._refreshing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tabs(self) -> set[Tab]:
        """Those that show it."""
        return self.audience.tabs

    @property
    def is_idle(self) -> bool:
        """Whether nobody works with the session."""
        return self.run is None and not self._lock.locked()

    @property
    def is_in_file(self) -> bool:
        """Whether the conversation's file has all of it, so that it need not be in memory."""
        return self.agent.path.is_file() and self.agent.is_saved and not self._draft

    # What tabs see.

    async def prepare(self) -> None:
        """Make what a snapshot says, before the first tab comes."""
        self.audience.view = await self._in_thread(self._encode)

    async def show(self) -> None:
        """Make sure that tabs see what the file has, and what the model says if it is loaded."""
        self.used = time.monotonic()
        await self.refresh()
        if not self.agent.has_model and self.models.is_wanted(self.agent.name):
            self._start(self._warm())

    async def refresh(self) -> None:
        """Show what another program has written to the file, if it has."""
        async with self._refreshing:  # who comes second waits until it is shown
            if self.is_idle and self.agent.was_changed_by_others():
                async with self._lock:
                    await self._reread()

    def greet(self, tab: Tab) -> None:
        """Tell a tab all, as it has just come or has fallen behind."""
        tab.push(self.audience.snapshot())
        if self._draft and self.run is None:
            tab.push(self._draft.told(None))

    def _progress(self, seconds: float, size: int, is_done: bool) -> None:
        self.audience.tell_loading(self.agent.name, seconds, size, is_done)

    # What users do.

    def handle(self, line: str, tab: str, images: Sequence[ImagePart] = ()) -> None:
        """Begin to handle a message, with its images, or a command. Raises `ApiError` 409 while it cannot be."""
        if self.is_leaving:
            raise ApiError(409, "this conversation is being deleted")
        if self.run is not None:
            raise ApiError(409, "a reply is running in this conversation; stop it, or wait for its end")
        self._draft.goes_on(tab)
        self.used = time.monotonic()
        self.run = Run(line, tab, images)
        if self.run.is_message:
            self.audience.begin(self._sent(self.run))
        self.run.task = self._start(self._handle(self.run))
        self.changed()

    def _sent(self, run: Run) -> Running:
        """What tabs are told of a message before its reply begins."""
        return Running(len(self.agent.session.turns), run.line, self.agent.shown_images.tell(run.images))

    def stop(self) -> None:
        """End the running reply; its part is kept."""
        if self.run is not None:
            self.run.is_stopped = True
            self.agent.session.stop()
            if self.run.is_waiting and self.run.task is not None:
                self.run.is_waiting = False
                self.run.task.cancel()

    async def end(self) -> None:
        """Stop what runs, and wait until it is saved."""
        self.stop()
        tasks = [*self._tasks]
        for task in tasks:
            if self.run is None or task is not self.run.task:  # it only waits for a model
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def compute(self, work: Callable[[PageAgent], T]) -> T:
        """Run a function in a thread, which may use the model. Raises `ApiError` 409 while a reply is running."""
        if self.run is not None:
            raise ApiError(409, "a reply is running in this conversation; look again when it has ended")
        async with self._lock, self.model.use(self._progress):
            return await self._in_thread(lambda: work(self.agent))

    async def copy_to(self, agent: PageAgent) -> None:
        """Give another agent all that was said. Raises `ApiError` 409 while a reply is running."""
        if self.run is not None:
            raise ApiError(409, "a reply is running in this conversation; copy it when it has ended")
        async with self._lock:
            await self._in_thread(lambda: agent.become_copy(self.agent))

    def release(self) -> None:
        """Let go of the model, which is about to be unloaded."""
        self.agent.detach()

    # How a line is handled.

    async def _handle(self, run: Run) -> None:
        try:
            run.is_waiting = True
            async with self._lock:
                run.is_waiting, run.has_session = False, True
                await self._catch_up(run)
                if run.is_stopped:
                    return
                path = self.agent.path
                run.is_waiting = True
                needs_model = self.agent.needs_model(run.line)
                if run.is_message and not self.agent.has_model:  # loading it may take minutes
                    await self._in_thread(lambda: self.agent.keep(run.line, run.images))
                async with self.model.use(self._progress) if needs_model else nullcontext():
                    run.is_waiting = False
                    await self._in_thread(lambda: self._work(run))
                if self.agent.wish:
                    await self._change_model(run)
                if self.agent.path != path and self.agent.is_saved:
                    await self._keep_id(run)
        except asyncio.CancelledError:
            if run.has_begun:  # otherwise it is told below
                self.audience.notify(run.stopped(self.agent.name), run.tab)
        except Exception as error:
            self.audience.notify(as_notice(error), run.tab)
        finally:
            run.is_waiting = False
            await self._finish(run)

    async def _catch_up(self, run: Run) -> None:
        """Begin with what the file has: another program may have changed it."""
        if self.agent.was_changed_by_others():
            self.audience.running = Running()  # it is told again, as the turn may be another one
            await self._reread()
            if run.is_message:
                self.audience.begin(self._sent(run))

    async def _change_model(self, run: Run) -> None:
        """Go on with the model that the user wants."""
        wish, self.agent.wish = self.agent.wish, ""
        run.is_waiting = True
        window = await self.model.change(wish, self._progress)
        run.is_waiting = False
        self.audience.notify(Notice("info", f"now {wish}, with a window of {window:,} tokens"), run.tab)
        if (problem := await self._in_thread(self.agent.autosave_now)) is not None:
            self.audience.notify(problem, run.tab)

    async def _finish(self, run: Run) -> None:
        session, view = self.agent.session, self.audience.view
        if run.is_answered and session.turns and session.turns[-1] is run.turn:
            self._notices[session.tree.node(len(session.turns) - 1).key] += self.audience.running.notices
        if (problem := self.agent.take_problem()) is not None:
            self.audience.notify(problem, run.tab)
        try:
            if run.has_session:  # otherwise another one may have it now, and nothing has changed
                async with self._lock:
                    view = await self._in_thread(self._encode)
        except Exception as error:
            LOG.error("conversation %s cannot be shown: %s: %s", self.id, type(error).__name__, error)
        if run.is_stopped and not run.has_begun:  # otherwise the session has told it
            self.audience.notify(run.stopped(self.agent.name), run.tab)
        self.run, self.audience.running, self.used = None, Running(), time.monotonic()
        self.updated = datetime.now().astimezone()
        self.audience.tell_view(view)
        if run.has_draft:
            self._draft.keep(run.draft, run.images, run.tab if self.tabs else None)
        if self._draft and not self.is_leaving:  # then it is for the tab that takes the deletion back
            self.audience.tell(self._draft.told(run.tab if run.has_draft else None))
        self.changed()

    def _work(self, run: Run) -> None:
        """Handle the line. In a thread."""
        agent = self.agent
        agent.session.on_begin = lambda: self._post(self._begin, run, run.begin(agent))
        if run.is_stopped:
            return
        run.has_begun = True
        try:
            with closing(agent.handle(run.line, run.images)) as events:
                for each in events:
                    if isinstance(each, Piece):
                        tokens = encode_tokens(each.tokens)
                        piece = PieceEvent("piece", self.id, text=each.text, reasoning=each.reasoning, tokens=tokens)
                        self._post(self.audience.take_piece, piece)
                    elif isinstance(each, Reply):
                        agent.note_answer(run.prompt)
                    else:
                        self._post(self.audience.notify, each, run.tab)
        finally:
            run.end(agent)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in the thread of the event loop."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    def _begin(self, run: Run, running: Running) -> None:
        """A reply begins."""
        if run.is_stopped:
            self.agent.session.stop()
        before = self.audience.running
        running.notices = before.notices
        if before.turn == running.turn and not (running.text or running.reasoning):  # the tabs know it
            self.audience.running = running
        else:
            self.audience.begin(running)

    async def _warm(self) -> None:
        """Get the model as soon as it is loaded, which others wait for already."""
        try:
            async with self._lock:
                async with self.model.use(self._progress):
                    view = await self._in_thread(self._encode)
                self.audience.tell_view(view)
        except (ApiError, BareloopError) as error:
            self.audience.notify(Notice("error", str(error)), None)

    # The file.

    async def _reread(self) -> None:
        """Take over what another program has written, and show it."""
        self.warnings = await self._in_thread(self.agent.reread)
        self._notices.clear()
        self.audience.tell_view(await self._in_thread(self._encode))

    async def _keep_id(self, run: Run) -> None:
        """Another program wrote the file while a reply ran, so that the reply is in a new file: show the old one."""
        name = self.agent.path.stem
        old = self.agent.path.with_name(f"{self.id}.json")
        self.warnings = await self._in_thread(lambda: self.agent.open_file(old))
        self._notices.clear()
        text = f"another program changed this conversation meanwhile; what was said here is in {name}"
        self.audience.notify(Notice("warning", text), run.tab)

    def _encode(self) -> bytes:
        warnings = [*self.warnings, *([self.agent.problem] if self.agent.problem else [])]
        return encode_view(self.agent, self._notices, warnings)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await in_thread(work, f"conversation {self.id}")

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
