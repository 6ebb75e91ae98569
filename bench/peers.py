"""python -m bench.peers: the engine beside transformers and llama.cpp, with the same weights, alternating in one run.

Every engine runs in its own process, which waits while the others are timed. One that crashes is left out, with its
signal; the others go on.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
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
from engine.runtime.errors import BareloopError, UsageError, quote

if TYPE_CHECKING:
    from rich.table import Table

# run(ids, new): seconds from the prompt to each of the new tokens.
Run = Callable[[list[int], int], list[float]]
Load = Callable[[Path, int, int], Run]  # model folder, threads, window in tokens

CALLBACKS: list[Any] = []  # kept alive, as llama.cpp has only pointers to them
BITS = {
    "bfloat16": 16,
    "float32": 32,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q4_0": 4.5,
}  # bits per weight of the other engines' formats


def parser() -> Parser:
    """The program's flags."""
    known = ", ".join(ENGINES)
    result = Parser("python -m bench.peers", "Compare decode and prefill with transformers and llama.cpp.")
    result.add_argument(
        "--model", "-m", default="qwen2.5-0.5b", help="a shape or a model folder (default: qwen2.5-0.5b)"
    )
    result.add_argument(
        "--engines", nargs="+", metavar="NAME", help=f"default: those installed, without float32; known: {known}"
    )
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
    result.add_argument("--threads", type=int, help="default: as many as torch uses")
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

    for flag in ("prompt_tokens", "new_tokens", "prefill_tokens", "rounds"):
        if getattr(options, flag) < 2:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(options, flag)}: use 2 or more")
    unknown = [name for name in options.engines or () if name not in ENGINES]
    if unknown:
        raise UsageError(f"unknown engine {quote(unknown[0])}; use {', '.join(ENGINES)}")
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

    name, _, form = engine.partition("-")
    if name == "bareloop":
        return sum(cost.nbytes for cost in open_model(folder, **load_options(form)).model.costs(context))
    cache_dtype = "float32" if form == "float32" else "bfloat16"  # whatever the format of the weights
    costs = list(open_model(folder, cache_dtype).model.costs(context))
    cache = past_bytes(costs)
    weights = sum(cost.nbytes for cost in costs) - cache
    return cache + round(weights * BITS[form] / BITS[cache_dtype])


class Worker:
    """An engine in its own process. Its methods raise `BareloopError` if the engine fails or dies."""

    def __init__(self, name: str, folder: Path, threads: int, window: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=serve, args=(child_pipe, name, folder, threads, window), daemon=True)
        self.process.start()
        child_pipe.close()
        self._answer()

    def run(self, ids: list[int], new: int) -> list[float]:
        """Seconds to each of the new tokens."""
        try:
            self.pipe.send((ids, new))
        except OSError:  # it is dead: `_answer` says how it ended
            pass
        return self._answer()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            status = self.process.exitcode or 0
            how = f"crashed ({signal.Signals(-status).name})" if status < 0 else f"exited with status {status}"
            raise BareloopError(f"{self.name} {how}") from None
        if isinstance(answer, str):
            raise BareloopError(f"{self.name}: {answer}")
        return answer


def serve(pipe: Any, name: str, folder: Path, threads: int, window: int) -> None:
    """The worker process: load an engine, confirm, and run requests until None comes."""
    try:
        run_once = ENGINES[name](folder, threads, window)
        pipe.send(None)
        while (job := pipe.recv()) is not None:
            pipe.send(run_once(*job))
    except EOFError:  # the parent process has ended
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            missing = isinstance(error, ModuleNotFoundError)
            pipe.send(f"{error}; pip install bareloop[peers]" if missing else f"{type(error).__name__}: {error}")


def timestamps(tokens: Iterator[Any]) -> list[float]:
    """Seconds from now to each token."""
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in tokens]


def bareloop(form: str) -> Load:
    """Our engine, by its stream of events."""

    def load(folder: Path, threads: int, window: int) -> Run:  # noqa: ARG001
        import torch

        from bench.measure import load_options
        from engine import LLM, SamplingParams, kernels

        torch.set_num_threads(threads)
        llm = LLM.load(folder, device="cpu", **load_options(form))
        kernels.wait()

        def run_once(ids: list[int], new: int) -> list[float]:
            return timestamps(llm.stream(ids, SamplingParams(max_new_tokens=new, ignore_eos=True)))

        return run_once

    return load


def transformers(dtype: str) -> Load:
    """transformers' `generate`, timed by a stopping criterion that never stops it."""

    def load(folder: Path, threads: int, window: int) -> Run:  # noqa: ARG001
        import torch
        from transformers import AutoModelForCausalLM, StoppingCriteriaList

        torch.set_num_threads(threads)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

        def run_once(ids: list[int], new: int) -> list[float]:
            times: list[float] = []

            def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG001
                times.append(time.perf_counter() - start)
                return torch.zeros(len(ids), dtype=torch.bool)

            start = time.perf_counter()
            criteria = StoppingCriteriaList([stamp])
            options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            model.generate(torch.tensor([ids]), stopping_criteria=criteria, **options)
            return times

        return run_once

    return load


def llama_cpp(form: str) -> Load:
    """llama.cpp through its C API: greedy, with only numpy's argmax between two steps."""

    def load(folder: Path, threads: int, window: int) -> Run:
        import ctypes

        import llama_cpp.llama_cpp as lib
        import numpy as np

        from bench.gguf_files import gguf_file

        path = gguf_file(folder, form)
        quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(quiet, None)
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not model:
            raise BareloopError(f"llama.cpp cannot load {path}")
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

        CALLBACKS.append(quiet)
        return lambda ids, new: timestamps(tokens(ids, new))

    return load


ENGINES: dict[str, Load] = {
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


def installed_engines() -> list[str]:
    """The engines that are installed, without float32."""
    from importlib.util import find_spec

    def installed(name: str) -> bool:
        return all(find_spec(package) for package in PACKAGES[name.partition("-")[0]])

    return [name for name in ENGINES if installed(name) and "float32" not in name]


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
