"""python -m bench.busy: decoding while other programs keep the processor busy, beside transformers and llama.cpp."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.peer_engines import Worker, add_engine_options, check_engines, installed_engines
from engine.cli.parser import Parser, require_at_least, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

SETTLE = 0.5  # seconds until the system has spread the busy processes over the cores


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.busy", "Measure decoding beside processes that keep the processor busy.")
    add_engine_options(result)
    result.add_argument(
        "--busy", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="numbers of busy processes (default: 1 2 4)"
    )
    result.add_argument("--new-tokens", type=int, default=48, metavar="N", help="tokens per round (default: 48)")
    result.add_argument("--rounds", type=int, default=7, help="of each number; medians are shown (default: 7)")
    result.add_argument("--output-dir", default="results/busy", metavar="FOLDER", help="default: results/busy")
    return result


def main(options: Any) -> None:
    """Measure, print, write."""
    from rich.console import Console

    from bench.shapes import checkpoint
    from engine.runtime.files import local_path, write_atomic

    require_at_least(2, options, "new_tokens")
    require_at_least(1, options, "rounds")
    if min(options.busy) < 1:
        raise UsageError(f"--busy {min(options.busy)}: use 1 or more; 0 is always measured")
    check_engines(options)
    rates = measure(checkpoint(options.model), options)
    if not rates:
        raise BareloopError("no engine could be measured")
    Console().print(table(rates, options))
    path = local_path(options.output_dir) / f"{Path(options.model).name}.json"
    write_atomic(path, json.dumps({"model": options.model, "tokens_per_second": rates}, indent=2) + "\n")
    Console(stderr=True).print(str(path), style="dim", soft_wrap=True)


def measure(folder: Path, options: Any) -> dict[str, dict[int, list[float]]]:
    """Tokens per second of each round, by engine and number of busy processes. An engine that fails is left out."""
    result: dict[str, dict[int, list[float]]] = {}
    engines = options.engines or installed_engines()
    counts = [0, *dict.fromkeys(options.busy)]
    with Progress("rounds", len(engines) * len(counts) * options.rounds) as progress:
        for number, name in enumerate(engines, 1):
            try:
                result[name] = measure_engine(name, folder, counts, options, progress)
            except BareloopError as error:
                print(f"left out: {error}", file=sys.stderr)
                progress.advance(number * len(counts) * options.rounds - progress.done)
    return result


def measure_engine(
    name: str, folder: Path, counts: list[int], options: Any, progress: Progress
) -> dict[int, list[float]]:
    """Tokens per second of each round of one engine, by number of busy processes."""
    import torch

    prompt = list(range(100, 116))
    result: dict[int, list[float]] = {}
    worker = Worker(name, folder, options.threads or torch.get_num_threads(), len(prompt) + options.new_tokens + 8)
    worker.run(prompt, options.new_tokens)  # warms up
    for count in counts:
        rates = result[count] = []
        with busy_processes(count):
            for _ in range(options.rounds):
                times = worker.run(prompt, options.new_tokens)
                rates.append((len(times) - 1) / (times[-1] - times[0]))
                progress.advance(1, f"{name} beside {count}: {rates[-1]:.1f} tokens/s")
    worker.close()
    return result


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute without a pause, at normal priority."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(SETTLE)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def table(rates: dict[str, dict[int, list[float]]], options: Any) -> Table:
    """Medians, and their shares of the quiet speed."""
    from rich.table import Table

    result = Table(title=f"{options.model}: tokens/s beside busy processes", title_justify="left")
    result.add_column("engine", no_wrap=True)
    counts = list(next(iter(rates.values())))
    for count in counts:
        result.add_column(str(count), justify="right")
    for name, by_count in rates.items():
        medians = {count: median(values) for count, values in by_count.items()}
        shares = [f"{medians[count]:.1f} ({medians[count] / medians[0]:.0%})" for count in counts[1:]]
        result.add_row(name, f"{medians[0]:.1f}", *shares)
    return result


if __name__ == "__main__":
    run(parser(), main)
