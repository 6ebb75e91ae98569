"""python -m bench.finetuning: LoRA steps beside transformers with peft, with the same weights, alternating in one run.

A step is a forward pass, a backward pass and an update by AdamW; B starts as zeros, so the first losses are the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.peer_engines import Worker
from engine.cli.parser import Parser, require_at_least, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError, UsageError, quote

if TYPE_CHECKING:
    from rich.table import Table

RANK = 8
LEARNING_RATE = 1e-4
ANSWER = 6  # tokens at the end of a row of "answers" that are learned, as of a question in SQuAD
ROWS = ("even", "ragged", "answers")
Step = Callable[[list[list[int]], int], tuple[float, float, int]]  # rows, learned tokens at their ends


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.finetuning", "Compare LoRA steps with those of transformers and peft.")
    result.add_argument("--model", "-m", default="gpt2-124m", help="a shape or a model's path (default: gpt2-124m)")
    result.add_argument(
        "--targets", nargs="+", default=["all-linear"], metavar="NAME", help="module names, or all-linear (default)"
    )
    result.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=["even", "ragged"],
        help="even: as long as possible, all tokens learned; ragged: of 100 to 300 tokens, all learned; answers: "
        f"ragged, of which the last {ANSWER} tokens are learned (default: even ragged)",
    )
    result.add_argument("--tokens", type=int, default=2048, metavar="N", help="per step (default: 2048)")
    result.add_argument("--longest", type=int, default=1024, metavar="N", help="even rows have so many tokens at most")
    result.add_argument("--rounds", type=int, default=5, help="steps of all engines in turn (default: 5)")
    result.add_argument("--engines", nargs="+", metavar="NAME", help=f"known: {', '.join(ENGINES)}", default=DEFAULT)
    result.add_argument("--threads", type=int, help="default: as many as torch uses")
    result.add_argument("--output-dir", default="results/finetuning", metavar="FOLDER", help="default: %(default)s")
    return result


@dataclass
class Measurement:
    """The steps of one engine with one kind of rows. `error`: why it stopped, if it did."""

    engine: str
    rows: str
    loss: float = 0.0  # of the first step
    seconds: list[float] = field(default_factory=list)
    peak: int = 0  # bytes of the process, weights included
    error: str = ""


def main(options: Any) -> None:
    """Measure, print, write."""
    from rich.console import Console

    from bench.shapes import checkpoint
    from engine.runtime.files import local_path, write_atomic

    require_at_least(1, options, "rounds")
    require_at_least(2, options, "tokens", "longest")
    if unknown := [name for name in options.engines if name not in ENGINES]:
        raise UsageError(f"unknown engine {quote(unknown[0])}; use {', '.join(ENGINES)}")
    folder = checkpoint(options.model)
    measured = [entry for kind in options.rows for entry in measure(folder, kind, options)]
    if any(entry.seconds for entry in measured):
        Console().print(table(measured, options))
    name = f"{Path(options.model).name}-{'-'.join(options.targets)}"
    path = local_path(options.output_dir) / f"{name}.json"
    settings = {name: getattr(options, name) for name in ("model", "targets", "tokens", "longest")}
    write_atomic(path, json.dumps({**settings, "engines": [asdict(entry) for entry in measured]}, indent=2) + "\n")
    Console(stderr=True).print(str(path), style="dim", soft_wrap=True)
    if not any(entry.seconds for entry in measured):
        raise BareloopError("no engine could be measured: " + "; ".join(entry.error for entry in measured))


def draw_rows(kind: str, tokens: int, longest: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random ids in rows of together exactly `tokens` tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while (missing := tokens - sum(lengths)) > 0:
        drawn = longest if kind == "even" else int(torch.randint(100, 301, (1,), generator=generator))
        lengths.append(min(drawn, missing))
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def measure(folder: Path, kind: str, options: Any) -> list[Measurement]:
    """Measure all engines in turn, step by step. One that fails is reported and left out from then on."""
    import torch

    from engine.runtime.files import read_json

    ids = draw_rows(kind, options.tokens, options.longest, read_json(folder / "config.json")["vocab_size"])
    learned = ANSWER if kind == "answers" else options.tokens
    result = {name: Measurement(name, kind) for name in options.engines}
    workers: dict[str, Worker] = {}
    with Progress(f"{kind} rows", len(result) * (options.rounds + 1)) as progress:
        for number in range(options.rounds + 1):  # the first one warms up
            for name, entry in result.items():
                if entry.error:
                    continue
                try:
                    if number == 0:
                        threads = options.threads or torch.get_num_threads()
                        workers[name] = Worker(name, folder, options.targets, threads, load=load)
                    seconds, loss, peak = workers[name].run(ids, learned)
                except BareloopError as error:
                    entry.error = str(error)
                    print(f"left out: {error}", file=sys.stderr)
                    progress.advance(options.rounds + 1 - number, f"{name} failed")
                    continue
                entry.peak = peak
                if number:
                    entry.seconds.append(seconds)
                else:
                    entry.loss = loss
                progress.advance(1, f"{name}: {options.tokens / seconds:.0f} tokens/s")
    for name, worker in workers.items():
        if not result[name].error:
            worker.close()
    return list(result.values())


def load(name: str, folder: Path, targets: list[str], threads: int) -> Step:
    """In a process of its own: a function that trains one step -> seconds, the loss, peak memory."""
    import torch

    from engine.runtime.memory import peak_memory, reset_peak_memory

    torch.set_num_threads(threads)
    chosen = targets[0] if targets == ["all-linear"] else tuple(targets)
    train = ENGINES[name](folder, chosen)
    reset_peak_memory(torch.device("cpu"))

    def step(rows: list[list[int]], learned: int) -> tuple[float, float, int]:
        start = time.perf_counter()
        loss = train(rows, learned)
        return time.perf_counter() - start, loss, peak_memory(torch.device("cpu"))

    return step


def bareloop(folder: Path, targets: tuple[str, ...] | str) -> Callable[[list[list[int]], int], float]:
    """Our trainer's step: packed rows."""
    from engine import LLM
    from engine.checkpoints.adapters.config import LoraConfig
    from engine.checkpoints.adapters.files import add_adapters
    from engine.finetune.data import Example
    from engine.finetune.loss import add_gradients, count_learned
    from engine.finetune.optimizer import adamw, update

    llm = LLM.load(folder, device="cpu", dtype="float32")
    add_adapters(llm.model, llm.family, LoraConfig(rank=RANK, alpha=2 * RANK, targets=targets))
    trained = [parameter for parameter in llm.model.parameters() if parameter.requires_grad]
    optimizer = adamw(trained)

    def train(rows: list[list[int]], learned: int) -> float:
        examples = [Example(ids, [index >= max(1, len(ids) - learned) for index in range(len(ids))]) for ids in rows]
        optimizer.zero_grad(set_to_none=True)
        loss = add_gradients(llm.model, examples, count_learned(examples))
        update(optimizer, trained, LEARNING_RATE, clip=1.0)
        return loss

    return train


def peft(dtype: str) -> Callable[..., Callable[[list[list[int]], int], float]]:
    """transformers and peft in this dtype: rows padded to the longest, no dropout, torch's fused attention."""

    def start(folder: Path, targets: tuple[str, ...] | str) -> Callable[[list[list[int]], int], float]:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        names = targets if isinstance(targets, str) else list(targets)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names, task_type="CAUSAL_LM")
        model = get_peft_model(base, config).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

        def train(rows: list[list[int]], learned: int) -> float:
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            ends = mask.cumsum(1) > mask.sum(1, keepdim=True) - learned
            labels = ids.masked_fill(~(ends & mask.bool()), -100)
            optimizer.zero_grad(set_to_none=True)
            padding = {} if bool(mask.all()) else {"attention_mask": mask}
            loss = model(input_ids=ids, labels=labels, use_cache=False, **padding).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            return float(loss.detach())

        return train

    return start


ENGINES: dict[str, Callable[..., Callable[[list[list[int]], int], float]]] = {
    "bareloop-float32": bareloop,
    "peft-float32": peft("float32"),
    "peft-bfloat16": peft("bfloat16"),
}
DEFAULT = ["bareloop-float32", "peft-float32"]


def table(measured: list[Measurement], options: Any) -> Table:
    """Medians, and how many times as fast the first engine is (the median of the ratios of all rounds)."""
    from rich.table import Table

    targets = " ".join(options.targets)
    result = Table(title=f"{options.model}, LoRA on {targets}, {options.tokens} tokens a step", title_justify="left")
    for name in ("rows", "engine"):
        result.add_column(name, no_wrap=True)
    for name in ("seconds", "tokens/s", "ratio", "peak, GB", "first loss"):
        result.add_column(name, justify="right")
    for entry in measured:
        if not entry.seconds:
            continue
        first = next(other for other in measured if other.rows == entry.rows)
        ratios = [their / our for their, our in zip(entry.seconds, first.seconds, strict=False)]
        middle = median(entry.seconds)
        result.add_row(
            entry.rows,
            entry.engine,
            f"{middle:.2f}",
            f"{options.tokens / middle:.0f}",
            f"{median(ratios):.2f}" if ratios else "",
            f"{entry.peak / 1e9:.2f}",
            f"{entry.loss:.4f}",
        )
    return result


if __name__ == "__main__":
    run(parser(), main)
