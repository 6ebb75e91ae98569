"""python -m engine.serve: an HTTP server with OpenAI's API."""

from __future__ import annotations

import gc
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model, model_options, require_at_least, run
from engine.runtime.errors import BareloopError, UsageError, quote

KEY_VARIABLE = "BARELOOP_API_KEY"
MIN_CONNECTIONS = 512


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine.serve", "Serve models over HTTP with OpenAI's API.")
    result.add_model_options(
        default=embedded.default_model(),
        about="model folder, GGUF file, hub id or ollama:NAME. The first of several is loaded at the start, the others "
        "when they are first used; the least recently used one is unloaded when memory is short",
    )
    result.add_draft_option()
    result.add_argument(
        "--alias",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="what clients call the models, in the same order (default: as after -m; of a path its last part)",
    )
    result.add_argument("--chat-template", metavar="FILE", help="Jinja chat template in place of the models' own")
    network = result.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    network.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for any free one (default: 8000)")
    network.add_argument(
        "--api-key-file",
        metavar="FILE",
        help=f"file of keys, one per line; clients must send one of them. Or set {KEY_VARIABLE} to a key. Necessary if "
        "other machines can connect",
    )
    network.add_argument(
        "--allow-host",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="further names or addresses by which clients call this server (always: localhost and --host)",
    )
    network.add_argument(
        "--allow-origin",
        action="extend",
        nargs="+",
        metavar="URL",
        help="web sites whose pages may use this server, such as http://localhost:3000 (default: none)",
    )
    limits = result.add_argument_group("limits")
    limits.add_argument("--context", type=int, metavar="N", help="largest window in tokens (default: the model's)")
    limits.add_argument(
        "--default-max-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="limit of a chat reply whose request names none (default: 4,096, or the rest of the window); memory is "
        "reserved for it, so a small number lets more requests run at the same time",
    )
    limits.add_argument(
        "--max-rows", type=int, metavar="N", help="requests that are computed at the same time (default: 32)"
    )
    limits.add_argument(
        "--max-queue",
        type=int,
        default=128,
        metavar="N",
        help="requests that may wait for their turn; further ones get status 429 (default: 128)",
    )
    limits.add_argument(
        "--cache-gb",
        type=float,
        metavar="X",
        help="memory for keys and values of one model (default: half of what is free, divided by the number of "
        "models; on a GPU --gpu-memory)",
    )
    limits.add_argument(
        "--share-replies",
        action="store_true",
        help="continue conversations without computing their replies again, for chats. What is cached may then change "
        "the last bits of log-probabilities, and seldom a token (default: only in float32)",
    )
    limits.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="longest time for a request (default: 600)"
    )
    limits.add_argument(
        "--drain",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time for running requests to finish after Ctrl-C or SIGTERM; a second signal ends them (default: 30)",
    )
    log = result.add_argument_group("log")
    log.add_argument("--quiet", action="store_true", help="no line for each request")
    log.add_argument(
        "--log-json", metavar="FILE", help="append a JSON object for each request, without its texts; - for stdout"
    )
    return result


def main(options: Any) -> None:
    """Check the flags, listen, and serve until a signal."""
    check(options)
    keys = read_keys(options.api_key_file)
    if not keys and not is_loopback(options.host):
        raise UsageError(
            f"--host {quote(options.host)} lets other machines connect, which needs a key: add --api-key-file FILE, or "
            f"set {KEY_VARIABLE}"
        )
    template = None if options.chat_template is None else read_template(options.chat_template)
    choose_model(options, embedded.default_model())

    from engine.runtime.device import choose_device
    from engine.serve.app import make_app
    from engine.serve.engine import EngineOptions
    from engine.serve.engines import Engines, public_names
    from engine.serve.metrics import Metrics
    from engine.serve.request_log import Observer
    from engine.serve.security import Security
    from engine.serve.server import Server, listen, serve
    from engine.serve.state import Limits, ServerState

    names = public_names(options.model, options.alias or (), options.adapter)
    hosts = (*(options.allow_host or ()), *(() if is_any_address(options.host) else (options.host,)))
    security = Security(allowed_hosts=hosts, allowed_origins=tuple(options.allow_origin or ()), keys=keys)
    choose_device(options.device)
    listener = listen(options.host, options.port)
    metrics = Metrics(list(names))
    observer = Observer(metrics, options.quiet, options.log_json, options.timeout)
    engine_options = EngineOptions(
        load=model_options(options),
        template=template,
        context=options.context,
        max_rows=options.max_rows,
        max_queue=options.max_queue,
        cache_bytes=None if options.cache_gb is None else int(1e9 * options.cache_gb),
        exact=False if options.share_replies else None,
        models=len(names),
    )
    engines = Engines(names, engine_options, observe=metrics.step, note=observer.note)
    metrics.watch(lambda: engines.loaded)
    limits = Limits(options.default_max_tokens, options.timeout)
    state = ServerState(engines, observer, security, limits)
    connections = max(MIN_CONNECTIONS, 2 * options.max_queue)
    server = Server(make_app(state), state, options.drain, connections)
    gc.freeze()  # the modules: looking through them for garbage would stop all replies for a tenth of a second
    serve(server, listener, options.host)


def check(options: Any) -> None:
    """Raise `UsageError` for a number that is out of range."""
    require_at_least(1, options, "context", "default_max_tokens", "max_rows", "max_queue")
    require_at_least(0, options, "drain", "port")
    if options.port > 65_535:
        raise UsageError(f"--port {options.port}: use 65535 or less")
    for name in ("timeout", "cache_gb", "drain"):
        value = getattr(options, name)
        if value is not None and not (0 if name == "drain" else 1e-9) <= value < 1e9:
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: use a number above 0")


def read_keys(path: str | None) -> tuple[str, ...]:
    """The API keys of a file, one per line, and of the environment.

    Raises `UsageError` for a file without a key.
    """
    keys = [os.environ[KEY_VARIABLE].strip()] if os.environ.get(KEY_VARIABLE, "").strip() else []
    if path is not None:
        of_file = [line.strip() for line in _read(path, "API keys").splitlines() if line.strip()]
        if not of_file:
            raise UsageError(f"--api-key-file {quote(path)} has no key; write one per line")
        keys += of_file
    return tuple(dict.fromkeys(keys))


def read_template(path: str) -> str:
    """The source of a chat template. Raises `UsageError` if it is empty, or not Jinja."""
    import jinja2

    from engine.text.template_worker import compile_template

    source = _read(path, "chat template")
    if not source.strip():
        raise UsageError(f"--chat-template {quote(path)} is empty")
    try:
        compile_template(source, "2000-01-01")
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"--chat-template {quote(path)}: line {error.lineno}: {error.message}") from error
    return source


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def is_any_address(host: str) -> bool:
    """Whether a host stands for all addresses of this machine, as 0.0.0.0 does."""
    address = _address(host)
    return not host or (address is not None and address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _read(path: str, content: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BareloopError(f"cannot read the {content} in {path}: {error}") from error


def program(arguments: Sequence[str] | None = None) -> None:
    """Run with these arguments, by default those of the command line."""
    run(parser(), main, arguments)


if __name__ == "__main__":
    program()
