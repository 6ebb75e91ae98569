"""python -m bench.peers: the engine beside transformers and llama.cpp, with the same weights, alternating in one run.

An engine that fails or crashes is left out, with its error or signal; the others go on.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.peer_engines import Worker, add_engine_options, check_engines, installed_engines
from engine.cli.parser import Parser, require_at_least, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError

if TYPE_CHECKING:
    from rich.table import Table

BITS = {
    "bfloat16": 16,
    "float32": 32,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q4_0": 4.5,
}  # bits per weight of the other engines' formats


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.peers", "Compare decode and prefill with transformers and llama.cpp.")
    add_engine_options(result)
    result.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="tokens before decoding (default: 128)"
    )
    result.add_argument(
        "--new-tokens", type=int, default=32, metavar="N", help="tokens decoded per round (default: 32)"
    )
    result.add_argument("--prefill-tokens", type=int, default=512, metavar="N", help="default: 512")
    result.add_argument(
        "--rounds", type=int, default=7, help="rounds of all engines in turn; medians are shown (default: 7)"
    )
    result.add_argument("--output-dir", default="results/peers", metavar="FOLDER", help="default: results/peers")
    return result


@dataclass
class Measurement:
    """The times of one engine, one number per round. `error`: why it stopped, if it did."""

    engine: str
    nbytes: int  # read per token
    decode: list[float] = field(default_factory=list)  # seconds per token, the median of a round
    prefill: list[float] = field(default_factory=list)  # seconds to the first token
    bandwidth: list[float] = field(default_factory=list)  # bytes per second read from memory in the same round
    error: str = ""


def main(options: Any) -> None:
    """Measure, print, write."""
    from rich.console import Console

    from bench.shapes import checkpoint
    from engine.runtime.files import local_path, write_atomic

    require_at_least(2, options, "prompt_tokens", "new_tokens", "prefill_tokens", "rounds")
    check_engines(options)
    measured = measure(checkpoint(options.model), options)
    complete = [entry for entry in measured if entry.decode]
    if complete:
        Console().print(table(complete, options))
    path = local_path(options.output_dir) / f"{Path(options.model).name}.json"
    settings = {name: getattr(options, name) for name in ("model", "prompt_tokens", "new_tokens", "prefill_tokens")}
    write_atomic(path, json.dumps({**settings, "engines": [asdict(entry) for entry in measured]}, indent=2) + "\n")
    Console(stderr=True).print(str(path), style="dim", soft_wrap=True)
    if not complete:
        raise BareloopError("no engine could be measured: " + "; ".join(entry.error for entry in measured))


def measure(folder: Path, options: Any) -> list[Measurement]:
    """Measure all engines in turn, round by round, each next to the memory bandwidth at that time.

    An engine that fails is reported and left out from then on; its rounds so far are kept.
    """
    import torch

    from engine.runtime.clocks import read_bandwidth
    from engine.runtime.files import read_json

    config = read_json(folder / "config.json")
    longest = max(options.prompt_tokens, options.prefill_tokens)
    ids = torch.randint(0, config["vocab_size"], (longest,), generator=torch.Generator().manual_seed(0)).tolist()
    threads = options.threads or torch.get_num_threads()
    window = longest + options.new_tokens + 8
    context = options.prompt_tokens + options.new_tokens // 2
    workers: dict[str, Worker] = {}
    result: dict[str, Measurement] = {}

    def fail(name: str, error: BareloopError) -> None:
        workers.pop(name, None)
        result[name].error = str(error)
        print(f"left out: {error}", file=sys.stderr)

    for name in options.engines or installed_engines():
        result[name] = Measurement(name, 0)
        try:
            workers[name] = Worker(name, folder, threads, window)
            result[name].nbytes = token_bytes(folder, name, context)
        except BareloopError as error:
            fail(name, error)
    with Progress("runs", len(workers) * (options.rounds + 1)) as progress:
        for number in range(options.rounds + 1):  # the first one warms up
            for name, worker in list(workers.items()):
                bandwidth = read_bandwidth(torch.device("cpu"))
                try:
                    times = worker.run(ids[: options.prompt_tokens], options.new_tokens)
                    prefill = worker.run(ids[: options.prefill_tokens], 1)[0]
                except BareloopError as error:
                    fail(name, error)
                    progress.advance(options.rounds + 1 - number, f"{name} failed")
                    continue
                gaps = [after - before for before, after in pairwise(times)]
                if number:
                    result[name].decode.append(median(gaps))
                    result[name].prefill.append(prefill)
                    result[name].bandwidth.append(bandwidth)
                progress.advance(1, f"{name}: {1 / median(gaps):.1f} tokens/s")
    for worker in workers.values():
        worker.close()
    return list(result.values())


def token_bytes(folder: Path, engine: str, context: int) -> int:
    """Bytes read per token in an engine's format: all weights except the other rows of the embedding, and the cache."""
    from bench.measure import load_options, past_bytes
    from engine.checkpoints.opening import open_model

    name, _, weight_format = engine.partition("-")
    if name == "bareloop":
        return open_model(folder, **load_options(weight_format)).model.token_bytes(context)
    cache_dtype = "float32" if weight_format == "float32" else "bfloat16"  # whatever the format of the weights
    costs = list(open_model(folder, cache_dtype).model.costs(context))
    cache = past_bytes(costs)
    weights = sum(cost.nbytes for cost in costs) - cache
    return cache + round(weights * BITS[weight_format] / BITS[cache_dtype])


def table(measured: list[Measurement], options: Any) -> Table:
    """Medians, and how many times as fast the first engine is (the median of the ratios of all rounds)."""
    from rich.table import Table

    decode, prefill = f"after {options.prompt_tokens}", f"prefill {options.prefill_tokens}"
    result = Table(title=f"{options.model}: {measured[0].engine} and its peers", title_justify="left")
    result.add_column("engine", no_wrap=True)
    for name in (f"tokens/s {decode}", "ratio", "GB/s", "of the limit", f"tokens/s, {prefill}", "ratio"):
        result.add_column(name, justify="right")
    ours = measured[0]
    for entry in measured:
        rate = [entry.nbytes / seconds for seconds in entry.decode]
        share = median(own / limit for own, limit in zip(rate, entry.bandwidth, strict=True))
        result.add_row(
            entry.engine,
            f"{1 / median(entry.decode):.1f}",
            f"{ratio(entry.decode, ours.decode):.2f}",
            f"{median(rate) / 1e9:.1f}",
            f"{share:.0%}",
            f"{options.prefill_tokens / median(entry.prefill):.0f}",
            f"{ratio(entry.prefill, ours.prefill):.2f}",
        )
    return result


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The median ratio of times in the rounds that both have."""
    return median(their / our for their, our in zip(theirs, ours, strict=False))


if __name__ == "__main__":
    run(parser(), main)
