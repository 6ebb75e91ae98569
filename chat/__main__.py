"""python -m chat: talk with a model. The context never overflows, and a turn computes only its new tokens."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from argparse import BooleanOptionalAction
from typing import Any

from chat.context import STRATEGIES
from engine.checkpoints import embedded
from engine.cli.parser import EXIT_RUNTIME, Parser, choose_model, model_options, run, sampling_options
from engine.runtime.errors import UsageError


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m chat", "Talk with a model.")
    result.add_model_options(default=embedded.default_model())
    result.add_draft_option()
    result.add_argument("--system", "--system-prompt", "-s", metavar="TEXT", help="system prompt")
    result.add_argument("--prompt", "-p", metavar="TEXT", help="send this message, print the reply, and exit")
    context = result.add_argument_group("context")
    context.add_argument("--strategy", choices=STRATEGIES, help="what to do when the window is full (default: sliding)")
    context.add_argument("--ctx-size", "-c", type=int, metavar="N", help="window size in tokens (default: the model's)")
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
        "--resume", nargs="?", const="", metavar="ID", help="continue a conversation (default: the last)"
    )
    files.add_argument("--no-save", dest="autosave", action="store_false", help="do not save this conversation")
    output = result.add_argument_group("output")
    output.add_argument(
        "--plain", action="store_true", help="no colours or line editing: replies on stdout, everything else on stderr"
    )
    output.add_argument("--json", action="store_true", help="one JSON object per line")
    result.add_sampling_options()
    return result


def main(options: Any) -> None:
    """Load the model, then chat in the terminal or through pipes."""
    if options.model and len(options.model) > 1:
        raise UsageError("chat uses one model; name one, and change it with /model")
    if options.ctx_size is not None and options.ctx_size < 1:
        raise UsageError(f"--ctx-size {options.ctx_size}: use 1 or more")
    choose_model(options, embedded.default_model())

    from chat import store
    from chat.agent import Agent
    from chat.events import Settings
    from chat.models.local import LocalModel
    from chat.pipe import Pipe

    def load(name: str) -> LocalModel:
        return LocalModel.load(name, **model_options(options))

    flags = {"window": options.ctx_size} | {
        name: getattr(options, name) for name in ("system", "strategy", "history", "reserve")
    }
    overrides = {name: value for name, value in flags.items() if value is not None}
    sampling = sampling_options(options)
    agent = Agent(load, options.model[0], Settings(**overrides, sampling=sampling), autosave=options.autosave)
    opening = list(agent.session.warnings)
    if options.resume is not None:
        opening += agent.load(store.find(options.resume) if options.resume else store.latest())
        agent.session.configure(**overrides, sampling=agent.session.settings.sampling | sampling)
    for name in ("SIGHUP", "SIGTERM"):  # a closed window: exit normally, so that the reply so far is saved
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
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
