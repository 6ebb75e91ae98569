"""python -m chat --web: the process that serves the page."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat import store
from chat.conversation.events import Settings
from chat.conversation.recall import Memory
from chat.web.access import page_key
from chat.web.agent import PageAgent
from chat.web.app import Site, make_app
from chat.web.library import Library
from chat.web.models.interface import Models
from engine.cli.parser import model_options
from engine.serve.metrics import Metrics
from engine.serve.request_log import Observer
from engine.serve.security import Security
from engine.serve.server import Server, listen, run
from engine.serve.state import ProcessState, ServerState

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from chat.web.models.remote import NoEngines

HOST = "127.0.0.1"
MAX_CONNECTIONS = 512
DRAIN_SECONDS = 30.0  # for requests of the API; replies of the page are stopped at once, and kept
SHARED = 2  # models that share the memory at least, so that two can be compared side by side


@dataclass
class RemoteState:
    """The `ProcessState` of a page whose models are a server's."""

    engines: NoEngines
    observer: Observer
    draining: bool = False


class PageServer(Server):
    """The server, which stops the page's replies before it drains, and ends the streams of its tabs."""

    def __init__(self, library: Library, app: ASGIApp, state: ProcessState) -> None:
        super().__init__(app, state, DRAIN_SECONDS, MAX_CONNECTIONS)
        self.library = library
        self.resumed: tuple[PageAgent, list[str]] | None = None  # what the page opens, with warnings about its file
        self.on_start: Callable[[], None] = lambda: None  # called when the page can be opened
        self._closing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, load the first model meanwhile, and say where the page is."""
        await super().startup(sockets)
        if self.resumed is not None:
            await self.library.add(*self.resumed)
        self.on_start()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second. -> whether to end"""
        if self.state.draining and self._closing is None:
            self._closing = asyncio.create_task(self.library.close())
        if self._closing is not None and not self._closing.done() and not self.force_exit:
            return False
        return await super().on_tick(counter)


def serve(options: Any, flags: Mapping[str, Any], sampling: Mapping[str, Any], memory: Memory | None = None) -> None:
    """Serve the page with these options until a signal.

    `flags`, `sampling`: what they set of new conversations, and of the one that is resumed. `memory`: of all
    conversations. Raises `BareloopError`.
    """
    observer = Observer(Metrics([]), quiet=not options.api)
    path = None if options.resume is None else store.find(options.resume) if options.resume else store.latest()
    state, models = _remote(options, observer) if options.url is not None else _local(options, observer)
    settings = Settings(**flags, sampling=dict(sampling))
    agent = PageAgent(models, models.names[0], settings, options.autosave, memory)
    warnings = [] if path is None else _resume(agent, path, flags, sampling)
    listener = listen(HOST, options.port)
    port = listener.getsockname()[1]
    library = Library(models, settings, options.autosave, memory)
    api, url = None, None
    if isinstance(state, ServerState) and options.api:
        from engine.serve.app import make_app as make_api

        api, url = make_api(state), f"http://{HOST}:{port}/v1"
    key = page_key(may_write=options.autosave)
    server = PageServer(library, make_app(Site(library, url), state, key, port, api), state)
    if isinstance(state, ServerState):
        state.engines.on_unload = lambda engine: library.release(engine.name)
    page = f"http://{HOST}:{port}/?key={key}"
    if path is not None:
        server.resumed, page = (agent, warnings), f"{page}#/c/{agent.path.stem}"
    server.on_start = lambda: _show(page, url, options.browser)
    gc.freeze()  # the modules: looking through them for garbage would stop all replies for a tenth of a second
    run(server, listener, summarizes=options.api)


def _resume(agent: PageAgent, path: Path, flags: Mapping[str, Any], sampling: Mapping[str, Any]) -> list[str]:
    """Go on with the conversation of a file, which is copied to the store unless it is there. -> warnings"""
    warnings = agent.open_file(path)
    settings = agent.session.settings
    agent.session.configure(**flags, sampling=settings.sampling | dict(sampling))
    if flags or sampling or agent.path != path:
        agent.autosave_now()
    return warnings


def _local(options: Any, observer: Observer) -> tuple[ServerState, Models]:
    """The models of this process."""
    from chat.web.models.local import LocalModels, variants
    from engine.decoding.sequence import PREFILL_CHUNK
    from engine.runtime.device import choose_device
    from engine.serve.engine import EngineOptions
    from engine.serve.engines import Engines, public_names

    choose_device(options.device)
    names = public_names(options.model, adapter=options.adapter)
    further = variants(names, options.quant)
    sources = names | {name: source for name, (source, _) in further.items()}
    changes = {name: changes for name, (_, changes) in further.items()}
    shared = max(SHARED, len(names))
    load = EngineOptions(load=model_options(options), exact=False, prefill_chunk=PREFILL_CHUNK, models=shared)
    load.needed_bytes(options.model[0])  # raises if there is no such model, before a browser is opened
    engines = Engines(sources, load, note=observer.note, variants=changes)
    observer.metrics.watch(lambda: engines.loaded)
    return ServerState(engines, observer, Security()), LocalModels(engines, sources)


def _remote(options: Any, observer: Observer) -> tuple[RemoteState, Models]:
    """The models of another server."""
    from chat.models.remote import Server as RemoteServer
    from chat.web.models.remote import NoEngines, RemoteModels
    from engine.remote.address import read_key

    remote = RemoteServer(options.url, read_key(options.api_key_file), options.ctx_size)
    names = list(options.model) if options.model else remote.names()
    return RemoteState(NoEngines(names), observer), RemoteModels(remote, names)


def _show(page: str, api: str | None, opens_browser: bool) -> None:
    print(f"open {page}" + ("" if api is None else f"\nOpenAI's API: {api}"), file=sys.stderr, flush=True)
    if opens_browser and _has_display():
        webbrowser.open(page)


def _has_display() -> bool:
    """Whether a browser that is started here would be seen by the user."""
    is_remote = any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY"))
    needs_server = sys.platform.startswith(("linux", "freebsd"))
    has_server = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return not is_remote and (has_server or not needs_server)
