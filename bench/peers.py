"""python -m bench.peers: the engine beside transformers and llama.cpp, the same weights, alternating in one sitting.

Every engine runs in a process of its own, which waits while the others are timed.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

# run(ids, new): the seconds at which each of the new tokens was there, from the moment that the prompt was given.
Run = Callable[[list[int], int], list[float]]
Make = Callable[[Path, int, int], Run]  # of a model's folder, threads and tokens of the window

KEPT: list[Any] = []  # callbacks of which llama.cpp holds bare pointers
BITS = {"bfloat16": 16, "float32": 32, "BF16": 16, "Q8_0": 8.5, "Q4_0": 4.5}  # of a weight, in engines other than ours


def parser() -> Parser:
    """The program's flags."""
    known = ", ".join(ENGINES)
    result = Parser("python -m bench.peers", "Decode and prefill beside transformers and llama.cpp.")
    result.add_argument("--model", "-m", default="qwen2.5-0.5b", help="a shape or a folder (default: qwen2.5-0.5b)")
    result.add_argument(
        "--engines", nargs="+", metavar="NAME", help=f"default: what is installed, without float32, of {known}"
    )
    result.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="before decoding (default: 128)")
    result.add_argument("--new-tokens", type=int, default=32, metavar="N", help="decoded in a round (default: 32)")
    result.add_argument("--prefill-tokens", type=int, default=512, metavar="N", help="default: 512")
    result.add_argument("--rounds", type=int, default=7, help="of all engines in turn; medians are shown (default: 7)")
    result.add_argument("--threads", type=int, help="default: as many as torch takes")
    result.add_argument("--output-dir", default="results/peers", metavar="FOLDER", help="default: results/peers")
    return result


@dataclass
class Measured:
    """What one engine took, a number for each round."""

    engine: str
    nbytes: int  # that a token reads
    decode: list[float] = field(default_factory=list)  # seconds a token, the median of a round
    prefill: list[float] = field(default_factory=list)  # seconds to the first token
    bandwidth: list[float] = field(default_factory=list)  # bytes a second that memory is read at, in the same round


def main(options: Any) -> None:
    """Measure, print, write."""
    from rich.console import Console

    from bench.shapes import checkpoint
    from engine.runtime.files import local_path, write_atomic

    for flag in ("prompt_tokens", "new_tokens", "prefill_tokens", "rounds"):
        if getattr(options, flag) < 2:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: use 2 or more")
    unknown = [name for name in options.engines or () if name not in ENGINES]
    if unknown:
        raise UsageError(f"no engine {unknown[0]!r}; there are: {', '.join(ENGINES)}")
    measured = measure(checkpoint(options.model), options)
    Console().print(table(measured, options))
    path = local_path(options.output_dir) / f"{Path(options.model).name}.json"
    settings = {name: getattr(options, name) for name in ("model", "prompt_tokens", "new_tokens", "prefill_tokens")}
    write_atomic(path, json.dumps({**settings, "engines": [asdict(one) for one in measured]}, indent=2) + "\n")
    Console(stderr=True).print(str(path), style="dim", soft_wrap=True)


def measure(folder: Path, options: Any) -> list[Measured]:
    """All engines in turn, round by round, each beside the bandwidth of its moment."""
    import torch

    from engine.runtime.clocks import read_bandwidth
    from engine.runtime.files import read_json

    config = read_json(folder / "config.json")
    longest = max(options.prompt_tokens, options.prefill_tokens)
    ids = torch.randint(0, config["vocab_size"], (longest,), generator=torch.Generator().manual_seed(0)).tolist()
    threads = options.threads or torch.get_num_threads()
    window = longest + options.new_tokens + 8
    workers = {}
    for name in options.engines or usual():
        try:
            workers[name] = Worker(name, folder, threads, window)
        except BareloopError as error:
            if options.engines:
                raise
            print(f"left out: {error}", file=sys.stderr)
    context = options.prompt_tokens + options.new_tokens // 2
    result = {name: Measured(name, token_bytes(folder, name, context)) for name in workers}
    with Progress("runs", len(workers) * (options.rounds + 1)) as progress:
        for number in range(options.rounds + 1):  # the first one warms up
            for name, worker in workers.items():
                bandwidth = read_bandwidth(torch.device("cpu"))
                times = worker.run(ids[: options.prompt_tokens], options.new_tokens)
                gaps = [after - before for before, after in pairwise(times)]
                prefill = worker.run(ids[: options.prefill_tokens], 1)[0]
                if number:
                    result[name].decode.append(median(gaps))
                    result[name].prefill.append(prefill)
                    result[name].bandwidth.append(bandwidth)
                progress.advance(1, f"{name}: {1 / median(gaps):.1f} tokens/s")
    for worker in workers.values():
        worker.close()
    return list(result.values())


def token_bytes(folder: Path, engine: str, context: int) -> int:
    """What a token reads in an engine's format: all weights but the embedding's other rows, and the past."""
    from bench.measure import how, past_bytes
    from engine.checkpoints.opening import open_model

    name, _, form = engine.partition("-")
    if name == "bareloop":
        return sum(cost.nbytes for cost in open_model(folder, **how(form)).model.costs(context))
    wide = "float32" if form == "float32" else "bfloat16"  # of what is remembered, whatever the weights are in
    costs = list(open_model(folder, wide).model.costs(context))
    kept = past_bytes(costs)
    weights = sum(cost.nbytes for cost in costs) - kept
    return kept + round(weights * BITS[form] / BITS[wide])


class Worker:
    """An engine in its own process."""

    def __init__(self, name: str, folder: Path, threads: int, window: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, folder, threads, window), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()

    def run(self, ids: list[int], new: int) -> list[float]:
        """Seconds to each of the new tokens."""
        self.pipe.send((ids, new))
        return self._answer()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise BareloopError(f"{self.name} ended without an answer") from None
        if isinstance(answer, str):
            raise BareloopError(f"{self.name}: {answer}")
        return answer


def serve(pipe: Any, name: str, folder: Path, threads: int, window: int) -> None:
    """Load an engine, say so, and run what is asked for until nothing more is."""
    try:
        run_once = ENGINES[name](folder, threads, window)
        pipe.send(None)
        while (job := pipe.recv()) is not None:
            pipe.send(run_once(*job))
    except EOFError:  # nobody asks any more
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            missing = isinstance(error, ModuleNotFoundError)
            pipe.send(f"{error}; pip install bareloop[peers]" if missing else f"{type(error).__name__}: {error}")


def stamped(tokens: Iterator[Any]) -> list[float]:
    """The seconds at which each is there."""
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in tokens]


def bareloop(form: str) -> Make:
    """Ours, from its own stream of events."""

    def make(folder: Path, threads: int, window: int) -> Run:  # noqa: ARG001
        import torch

        from bench.measure import how
        from engine import LLM, SamplingParams, kernels

        torch.set_num_threads(threads)
        llm = LLM.load(folder, device="cpu", **how(form))
        kernels.wait()

        def run_once(ids: list[int], new: int) -> list[float]:
            return stamped(llm.stream(ids, SamplingParams(max_new_tokens=new, ignore_eos=True)))

        return run_once

    return make


def transformers(dtype: str) -> Make:
    """Its `generate`, stamped by a criterion that never stops it."""

    def make(folder: Path, threads: int, window: int) -> Run:  # noqa: ARG001
        import torch
        from transformers import AutoModelForCausalLM, StoppingCriteriaList

        torch.set_num_threads(threads)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

        def run_once(ids: list[int], new: int) -> list[float]:
            times: list[float] = []

            def stamp(written: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG001
                times.append(time.perf_counter() - start)
                return torch.zeros(len(written), dtype=torch.bool)

            start = time.perf_counter()
            criteria = StoppingCriteriaList([stamp])
            options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            model.generate(torch.tensor([ids]), stopping_criteria=criteria, **options)
            return times

        return run_once

    return make


def llama_cpp(form: str) -> Make:
    """llama.cpp by its C functions: greedy, and nothing between two of its steps but numpy's argmax."""

    def make(folder: Path, threads: int, window: int) -> Run:
        import ctypes

        import llama_cpp.llama_cpp as lib
        import numpy as np

        from bench.gguf_files import gguf_file

        path = gguf_file(folder, form)
        quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(quiet, None)
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not model:
            raise BareloopError(f"it cannot load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = window, 512, 512
        params.n_threads = params.n_threads_batch = threads
        context = lib.llama_init_from_model(model, params)
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

        def step(ids: list[int]) -> int:
            tokens = (lib.llama_token * len(ids))(*ids)
            if lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))):
                raise BareloopError("llama_decode failed")
            logits = lib.llama_get_logits_ith(context, -1)
            return int(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (size,)).argmax())

        def tokens(ids: list[int], new: int) -> Iterator[int]:
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            for begin in range(0, len(ids), 512):
                token = step(ids[begin : begin + 512])
            yield token
            for _ in range(new - 1):
                token = step([token])
                yield token

        KEPT.append(quiet)
        return lambda ids, new: stamped(tokens(ids, new))

    return make


ENGINES: dict[str, Make] = {
    "bareloop-bfloat16": bareloop("bfloat16"),
    "bareloop-float32": bareloop("float32"),
    "bareloop-int8": bareloop("int8"),
    "bareloop-int4": bareloop("int4"),
    "transformers-bfloat16": transformers("bfloat16"),
    "transformers-float32": transformers("float32"),
    "llama.cpp-BF16": llama_cpp("BF16"),
    "llama.cpp-Q8_0": llama_cpp("Q8_0"),
    "llama.cpp-Q4_0": llama_cpp("Q4_0"),
}
PACKAGES = {"bareloop": ["engine"], "transformers": ["transformers"], "llama.cpp": ["llama_cpp", "gguf"]}


def usual() -> list[str]:
    """The engines that are installed, but for float32."""
    from importlib.util import find_spec

    def installed(name: str) -> bool:
        return all(find_spec(package) for package in PACKAGES[name.partition("-")[0]])

    return [name for name in ENGINES if installed(name) and "float32" not in name]


def table(measured: list[Measured], options: Any) -> Table:
    """Medians, and how many times as fast the first engine is: the median of the ratios of all rounds."""
    from rich.table import Table

    decode, prefill = f"after {options.prompt_tokens}", f"prefill {options.prefill_tokens}"
    result = Table(title=f"{options.model}: {measured[0].engine} and its peers", title_justify="left")
    result.add_column("engine", no_wrap=True)
    for name in (f"tokens/s {decode}", "ratio", "GB/s", "of the limit", f"tokens/s, {prefill}", "ratio"):
        result.add_column(name, justify="right")
    ours = measured[0]
    for one in measured:
        rate = [one.nbytes / seconds for seconds in one.decode]
        share = median(mine / limit for mine, limit in zip(rate, one.bandwidth, strict=True))
        result.add_row(
            one.engine,
            f"{1 / median(one.decode):.1f}",
            f"{median(theirs / mine for theirs, mine in zip(one.decode, ours.decode, strict=True)):.2f}",
            f"{median(rate) / 1e9:.1f}",
            f"{share:.0%}",
            f"{options.prefill_tokens / median(one.prefill):.0f}",
            f"{median(theirs / mine for theirs, mine in zip(one.prefill, ours.prefill, strict=True)):.2f}",
        )
    return result


if __name__ == "__main__":
    run(parser(), main)
