"""The engines that `bench.peers` compares, each in its own process, which waits while the others are timed."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.cli.parser import Parser
from engine.runtime.errors import BareloopError, UsageError, quote

# run(ids, new): seconds from the prompt to each of the new tokens.
Run = Callable[[list[int], int], list[float]]
Load = Callable[[Path, int, int], Run]  # model folder, threads, window in tokens

CALLBACKS: list[Any] = []  # kept alive, as llama.cpp has only pointers to them


class Worker:
    """An engine in its own process. Its methods raise `BareloopError` if the engine fails or dies.

    `load`, a function of a module, is called there with the name and the settings, and returns what `run` calls.
    """

    def __init__(self, name: str, *settings: Any, load: Callable[..., Callable[..., Any]] | None = None) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(
            target=serve, args=(child_pipe, load or load_engine, name, *settings), daemon=True
        )
        self.process.start()
        child_pipe.close()
        self._answer()

    def run(self, *job: Any) -> Any:
        """What the loaded function returns; of the engines of this file, seconds to each of the new tokens."""
        with contextlib.suppress(OSError):  # if it is dead, `_answer` says how it ended
            self.pipe.send(job)
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


def serve(pipe: Any, load: Callable[..., Callable[..., Any]], name: str, *settings: Any) -> None:
    """The worker process: load an engine, confirm, and run requests until None comes."""
    try:
        run_once = load(name, *settings)
        pipe.send(None)
        while (job := pipe.recv()) is not None:
            pipe.send(run_once(*job))
    except EOFError:  # the parent process has ended
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            missing = isinstance(error, ModuleNotFoundError)
            pipe.send(f"{error}; pip install bareloop[peers]" if missing else f"{type(error).__name__}: {error}")


def load_engine(name: str, folder: Path, threads: int, window: int) -> Run:
    """Load one of `ENGINES`."""
    return ENGINES[name](folder, threads, window)


def timestamps(tokens: Iterator[Any]) -> list[float]:
    """Seconds from now to each token."""
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in tokens]


def bareloop(weight_format: str) -> Load:
    """Our engine, by its stream of events."""

    def load(folder: Path, threads: int, window: int) -> Run:  # noqa: ARG001
        import torch

        from bench.measure import load_options
        from engine import LLM, SamplingParams, kernels

        torch.set_num_threads(threads)
        llm = LLM.load(folder, device="cpu", **load_options(weight_format))
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


def llama_cpp(weight_format: str) -> Load:
    """llama.cpp through its C API: greedy, with only numpy's argmax between two steps."""

    def load(folder: Path, threads: int, window: int) -> Run:
        import ctypes

        import llama_cpp.llama_cpp as lib
        import numpy as np

        from bench.gguf_files import gguf_file

        path = gguf_file(folder, weight_format)
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


def add_engine_options(parser: Parser) -> None:
    """Add the flags of every comparison of engines: --model, --engines, --threads."""
    parser.add_argument(
        "--model", "-m", default="qwen2.5-0.5b", help="a shape, smollm2, or a model's path (default: qwen2.5-0.5b)"
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        metavar="NAME",
        help=f"default: those installed, without float32; known: {', '.join(ENGINES)}",
    )
    parser.add_argument("--threads", type=int, help="default: as many as torch uses")


def check_engines(options: Any) -> None:
    """Raise `UsageError` for an unknown engine."""
    unknown = [name for name in options.engines or () if name not in ENGINES]
    if unknown:
        raise UsageError(f"unknown engine {quote(unknown[0])}; use {', '.join(ENGINES)}")
