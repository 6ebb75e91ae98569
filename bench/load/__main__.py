"""python -m bench.load: the speed of an OpenAI-compatible server under load, ours or another's.

Closed loop (--concurrency): so many clients, each of which sends its next request when its last one is answered. Open
loop (--rate): requests arrive at random times, whether the others are answered or not.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from bench.load.client import Client
from bench.load.pacing import Limit, measure
from bench.load.prompts import FilePrompts, Prompts, RandomWords, measure_words
from bench.load.records import OK, Run, Setting
from bench.load.report import draw, notes, tables
from engine.cli.parser import Parser, require_at_least, run
from engine.cli.progress import Progress
from engine.remote.address import read_key
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path

CONCURRENCIES = (1, 4, 16)
TTFT_TARGET, TPOT_TARGET = 0.5, 0.05  # seconds
LEAST_REQUESTS, REQUESTS_PER_CLIENT, OPEN_REQUESTS = 8, 4, 32  # of a setting, if no number is given


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.load", "Measure an OpenAI-compatible server under load.")
    result.add_argument("--url", help="address of the server, such as http://127.0.0.1:8000")
    result.add_argument("--model", "-m", metavar="NAME", help="default: the first that the server names")
    result.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the key (default: the variable BARELOOP_API_KEY or OPENAI_API_KEY)",
    )
    result.add_argument("--label", metavar="TEXT", help="name in tables and pictures (default: model and address)")
    load = result.add_argument_group("load")
    load.add_argument(
        "--concurrency",
        nargs="+",
        type=int,
        metavar="N",
        help="numbers of clients that each wait for their answer (default: 1 4 16, without --rate)",
    )
    load.add_argument("--rate", nargs="+", type=float, metavar="R", help="requests per second, at random times")
    length = load.add_mutually_exclusive_group()
    length.add_argument(
        "--requests",
        type=int,
        metavar="N",
        help=f"requests of each setting (default: {REQUESTS_PER_CLIENT} a client, at least {LEAST_REQUESTS}; "
        f"with --rate {OPEN_REQUESTS})",
    )
    length.add_argument("--duration", type=float, metavar="S", help="seconds in which requests are sent, each setting")
    load.add_argument("--timeout", type=float, default=600.0, metavar="S", help="without an answer (default: 600)")
    prompts = result.add_argument_group("requests")
    prompts.add_argument(
        "--endpoint", choices=("chat", "completions"), default="completions", help="default: completions"
    )
    prompts.add_argument(
        "--input-tokens", type=int, default=256, metavar="N", help="with what the server adds (default: 256)"
    )
    prompts.add_argument("--output-tokens", type=int, default=128, metavar="N", help="default: 128")
    prompts.add_argument(
        "--shared-prefix", type=int, default=0, metavar="N", help="first tokens that are the same in all"
    )
    prompts.add_argument("--prompts", metavar="FILE", help="JSON lines with prompt or messages (default: random words)")
    prompts.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")
    output = result.add_argument_group("figures")
    output.add_argument("--ttft-target", type=float, metavar="S", help=f"for goodput (default: {TTFT_TARGET})")
    output.add_argument("--tpot-target", type=float, metavar="S", help=f"for goodput (default: {TPOT_TARGET})")
    output.add_argument("--json", metavar="FILE", help="write the times of all requests")
    output.add_argument("--plot", metavar="FILE.png", help="write a picture, as .png and .svg")
    output.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        metavar="FILE",
        help="measure nothing; show files of --json, together in one picture",
    )
    return result


def main(options: Any) -> None:
    """Measure or read, print, write, plot. What was measured is shown even after Ctrl-C."""
    from rich.console import Console

    interrupted = False
    if options.sources:
        runs = [Run.read(local_path(name)) for name in options.sources]
        for entry in runs:
            entry.ttft_target = options.ttft_target or entry.ttft_target
            entry.tpot_target = options.tpot_target or entry.tpot_target
    else:
        check(options)
        runs = [new_run(options)]
        try:
            asyncio.run(measure_all(runs[0], options))
        except KeyboardInterrupt:
            interrupted = True
            if not any(setting.records for setting in runs[0].settings):
                raise
    quiet = Console(stderr=True, highlight=False, style="dim", soft_wrap=True)
    for entry in runs:
        if not any(setting.records for setting in entry.settings):
            continue
        Console().print(*tables(entry), sep="\n")
        for note in notes(entry):
            quiet.print(note, markup=False)
    if options.json and not options.sources:
        runs[0].write(local_path(options.json))
        quiet.print(options.json, markup=False)
    if options.plot:
        path = local_path(options.plot)
        path = path.with_suffix("") if path.suffix in (".png", ".svg") else path
        draw(runs, path)
        quiet.print(f"{path}.png, .svg", markup=False)
    if interrupted:
        raise KeyboardInterrupt("interrupted; requests without an answer are not counted")
    if not any(setting.good for entry in runs for setting in entry.settings):
        raise BareloopError("no request succeeded")


def check(options: Any) -> None:
    """Raise `UsageError` for numbers that make no load."""
    if not options.url:
        raise UsageError("name a server with --url, or files with --from")
    require_at_least(1, options, "requests", "input_tokens", "output_tokens")
    require_at_least(0, options, "shared_prefix")
    for name in ("concurrency", "rate"):
        for value in getattr(options, name) or ():
            if not 0 < value <= 1e6:
                raise UsageError(f"--{name} {value}: use more than 0 and at most 1,000,000")
    for name in ("duration", "timeout", "ttft_target", "tpot_target"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value}: use more than 0 seconds")
    if options.shared_prefix >= options.input_tokens:
        raise UsageError(
            f"--shared-prefix {options.shared_prefix}: use less than --input-tokens {options.input_tokens}"
        )


def new_run(options: Any) -> Run:
    """A run without figures."""
    kept = ("requests", "duration", "input_tokens", "output_tokens", "shared_prefix", "prompts", "seed")
    return Run(
        label=options.label or "",
        url=options.url,
        model=options.model or "",
        endpoint=options.endpoint,
        ttft_target=options.ttft_target or TTFT_TARGET,
        tpot_target=options.tpot_target or TPOT_TARGET,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        options={name: getattr(options, name) for name in kept},
    )


def settings_of(options: Any) -> list[tuple[Setting, Limit]]:
    """What is measured, in this order, and for how long."""
    clients = options.concurrency or (() if options.rate else CONCURRENCIES)
    result = []
    for kind, values in (("concurrency", clients), ("rate", options.rate or ())):
        for value in values:
            usual = max(LEAST_REQUESTS, REQUESTS_PER_CLIENT * int(value)) if kind == "concurrency" else OPEN_REQUESTS
            requests = None if options.duration else options.requests or usual
            result.append((Setting(kind, value), Limit(requests, options.duration)))
    return result


async def measure_all(run: Run, options: Any) -> None:
    """Warm up, then measure all settings into the run."""
    async with Client(
        options.url,
        options.model,
        options.endpoint,
        options.output_tokens,
        read_key(options.api_key_file),
        options.timeout,
    ) as client:
        if not client.model:
            names = await client.models()
            if not names:
                raise BareloopError(f"{client.url} has no model")
            client.model = names[0]
        run.model = client.model
        name = client.model.rpartition("/")[2] if client.model.startswith("/") else client.model  # a path, or a name
        run.label = run.label or f"{name} at {urlsplit(client.url).netloc}"
        prompts = await prepare(client, options)
        plan = settings_of(options)
        numbers = itertools.count()  # no prompt comes twice, as the server may have kept it
        total = sum(limit.requests or round(limit.seconds or 0) for _, limit in plan)
        with Progress("requests" if options.duration is None else "seconds", total) as progress:
            for setting, limit in plan:
                run.settings.append(setting)
                report = Reporter(progress, setting, client, limit)
                before = time.process_time()
                try:
                    await measure(client, setting, limit, prompts, numbers, options.seed, report)
                finally:
                    setting.cpu_seconds = time.process_time() - before
                report.finish()


class Reporter:
    """Reports each request as progress: of their number, or of the seconds."""

    def __init__(self, progress: Progress, setting: Setting, client: Client, limit: Limit) -> None:
        self.progress, self.setting, self.client, self.limit = progress, setting, client, limit
        self.end = progress.done + (limit.requests or round(limit.seconds or 0))
        self.start = progress.done

    def __call__(self) -> None:
        count = 1
        if self.limit.requests is None:
            count = min(self.end, self.start + int(self.client.now())) - self.progress.done
        self.progress.advance(count, self.setting.label)

    def finish(self) -> None:
        """The setting is done, however many seconds it took."""
        self.progress.advance(self.end - self.progress.done, self.setting.label)


async def prepare(client: Client, options: Any) -> Prompts:
    """The prompts, after a request that is not counted, which shows what the server accepts and adds."""
    words = None
    prompts: Prompts
    if options.prompts:
        prompts = FilePrompts(local_path(options.prompts), options.endpoint)
    else:
        costs = await measure_words(client)
        prompts = words = RandomWords(options.input_tokens, options.shared_prefix, options.seed, costs)
    first = prompts.prompt(-1)
    client.begin()
    print("warming up with one request", file=sys.stderr)
    while (record := await client.ask(first)).status != OK:
        if not client.adapt(record):
            where = f"{client.url} ({client.model})"
            raise BareloopError(f"{where} refused the first request: {record.status}: {record.error}")
    if words is not None and record.has_usage:
        words.calibrate(record.prompt_tokens)
    return prompts


if __name__ == "__main__":
    run(parser(), main)
