"""python -m bench.gpu_check: check and measure everything that runs on a GPU, within eight minutes.

Every part runs in a subprocess with its own time limit. A part that fails, crashes or takes too long is recorded with
the figures that it had until then, and the others go on; the most important ones come first. The report is written
after every part, as JSON and as Markdown. A bare image with torch, CUDA, Triton, pytest and transformers is enough.
`--device cpu --shape tiny` tries all of it without a GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.gpu.processes import describe_failure, read_figures, run_limited
from bench.gpu.report import LARGE, SMALL, Result, markdown
from engine.cli.parser import Parser, run
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.files import local_path, write_atomic

BUDGET = 480.0  # seconds
MIN_LIMIT = 8.0  # seconds; a part is skipped if less is left of the budget
MAX_LINES = 150  # lines of a part's output that are kept


@dataclass(frozen=True)
class Part:
    """A function of bench/gpu/parts.py, the shape that it gets, and its time in seconds."""

    name: str
    seconds: float
    shape: str = ""  # of bench/shapes.py; empty: it needs none


PLAN = (
    Part("machine", 20),
    Part("tests", 100),
    Part("correctness", 60),
    Part("bfloat16", 45, SMALL),
    Part("scoring", 20, SMALL),
    Part("bfloat16", 40, LARGE),
    Part("int4", 30, LARGE),
    Part("products", 25, SMALL),
    Part("products", 20, LARGE),
    Part("attention", 20, SMALL),
    Part("attention", 20, LARGE),
    Part("int8", 20, SMALL),
    Part("int4", 20, SMALL),
    Part("int8", 15, LARGE),
    Part("transformers", 25, SMALL),
)
NAMES = tuple(dict.fromkeys(part.name for part in PLAN))


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.gpu_check", "Check and measure everything that runs on a GPU.")
    result.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the program (default: cuda)")
    result.add_argument("--shape", help=f"of bench/shapes.py, for all parts (default: {SMALL} and {LARGE})")
    result.add_argument("--parts", nargs="+", metavar="PART", help=f"default: all of {', '.join(NAMES)}")
    result.add_argument(
        "--budget", type=float, default=BUDGET, metavar="S", help=f"seconds for everything (default: {BUDGET:.0f})"
    )
    result.add_argument(
        "--report",
        default="results/gpu_check",
        metavar="FILE",
        help="writes FILE.json and FILE.md (default: %(default)s)",
    )
    result.add_argument("--part", help="run one part in this process, and print its figures as lines of JSON")
    return result


def main(options: Any) -> None:
    """Run all parts, print and write the report. Exit status 1 if a part failed, or there is no such device."""
    unknown = [
        name for name in [*(options.parts or ()), *([options.part] if options.part else ())] if name not in NAMES
    ]
    if unknown:
        raise UsageError(f"unknown part {quote(unknown[0])}; use {', '.join(NAMES)}")
    if options.part:
        print_figures(options.part, options.device, options.shape or SMALL)
        return
    if options.budget <= 0:
        raise UsageError(f"--budget {options.budget:g}: use a positive number of seconds")
    from engine.runtime.device import choose_device

    choose_device(options.device)  # one error instead of one for each part
    path = local_path(options.report).with_suffix("")
    plan = choose_parts(options.parts, options.shape)
    deadline = time.monotonic() + options.budget
    results: list[Result] = []
    for index, part in enumerate(plan):
        later = sum(other.seconds for other in plan[index + 1 :])
        result = run_part(part, options.device, limit_of(part, deadline - time.monotonic(), later))
        results.append(result)
        error = f": {result.error}" * bool(result.error)
        print(f"{result.title}: {result.status}, {result.seconds:.0f} s{error}", flush=True)
        write_atomic(path.with_suffix(".json"), json.dumps([asdict(entry) for entry in results], indent=2) + "\n")
        write_atomic(path.with_suffix(".md"), markdown(results, options.device))
    print(markdown(results, options.device))
    print(f"{path}.json, {path}.md", file=sys.stderr)
    bad = [result.title for result in results if result.status in ("failed", "timed out")]
    if bad:
        raise BareloopError(f"{len(bad)} of {len(results)} parts did not pass: {', '.join(bad)}")


def choose_parts(names: Sequence[str] | None, shape: str | None) -> list[Part]:
    """The parts of these names. With a shape each of them runs once, with that one."""
    parts = [part for part in PLAN if not names or part.name in names]
    if shape is None:
        return parts
    first = {part.name: part for part in reversed(parts)}
    return [Part(part.name, part.seconds, part.shape and shape) for part in parts if first[part.name] is part]


def limit_of(part: Part, left: float, later: float) -> float:
    """The part's time, or up to twice as much if earlier parts took less. `later`: the time of the parts after it."""
    return max(min(part.seconds, left), min(2 * part.seconds, left - later))


def print_figures(name: str, device: str, shape: str) -> None:
    """Run a part in this process, and print its figures, or why it is skipped."""
    from bench.gpu.parts import PARTS
    from bench.gpu.timing import SkippedError

    try:
        for figures in PARTS[name](device, shape):
            print(json.dumps(figures), flush=True)
    except SkippedError as reason:
        print(json.dumps({"skipped": str(reason)}))


def run_part(part: Part, device: str, limit: float) -> Result:
    """Run one part in a subprocess for at most `limit` seconds."""
    if limit < MIN_LIMIT:
        return Result(part.name, part.shape, "skipped", error="the budget is spent")
    start = time.monotonic()
    status, lines = run_limited(command_of(part, device), limit)
    figures, output = read_figures(lines)
    result = Result(
        part.name, part.shape, "passed", time.monotonic() - start, figures=figures, output=output[-MAX_LINES:]
    )
    if status is None:
        result.status, result.error = "timed out", f"exceeded its limit of {limit:.0f} s"
    elif status:
        result.status, result.error = "failed", describe_failure(status, output)
    elif "skipped" in figures:
        result.status, result.error = "skipped", figures.pop("skipped")
    return result


def command_of(part: Part, device: str) -> list[str]:
    """The command line of one part."""
    program = [sys.executable, "-m", "bench.gpu_check", "--part", part.name, "--device", device]
    return [*program, "--shape", part.shape] if part.shape else program


if __name__ == "__main__":
    run(parser(), main)
