"""python -m bench.gpu_check: check and measure everything that runs on a GPU, within eight minutes.

Every part runs in a subprocess with its own time limit; a part that fails or crashes is recorded, and the others
go on. The report is written after every part, as JSON and as Markdown. A bare image with torch, CUDA, Triton, pytest
and transformers is enough. `--device cpu --shape tiny` tries all of it without a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.cli.parser import Parser, run
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.files import local_path, write_atomic

ROOT = Path(__file__).parents[1]
BUDGET = 480.0  # seconds
MIN_LIMIT = 10.0  # seconds; a part is skipped if less is left of the budget
MAX_LINES = 25  # lines of a failed part's output that are kept

# Part -> its limit in seconds. Each has a function of this name in bench/gpu_parts.py, except `tests`.
PARTS = {
    "machine": 60.0,
    "tests": 150.0,
    "correctness": 120.0,
    "bfloat16": 120.0,
    "int8": 100.0,
    "int4": 100.0,
    "transformers": 120.0,
}


@dataclass
class Result:
    """The outcome of one part."""

    part: str
    status: str  # passed, failed, timed out, skipped
    seconds: float = 0.0
    error: str = ""  # one line
    output: list[str] = field(default_factory=list)  # the last lines of a failed part
    figures: dict[str, Any] = field(default_factory=dict)


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.gpu_check", "Check and measure everything that runs on a GPU.")
    result.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the program (default: cuda)")
    result.add_argument("--shape", default="llama-3.2-1b", help="of bench/shapes.py (default: llama-3.2-1b)")
    result.add_argument("--parts", nargs="+", metavar="PART", help=f"default: all of {', '.join(PARTS)}")
    result.add_argument(
        "--budget", type=float, default=BUDGET, metavar="S", help=f"seconds for everything (default: {BUDGET:.0f})"
    )
    result.add_argument(
        "--report",
        default="results/gpu_check",
        metavar="FILE",
        help="writes FILE.json and FILE.md (default: %(default)s)",
    )
    result.add_argument("--part", help="run one part in this process, and print its figures as JSON")
    return result


def main(options: Any) -> None:
    """Run all parts, print and write the report. Exit status 1 if a part failed."""
    unknown = [
        name for name in [*(options.parts or ()), *([options.part] if options.part else ())] if name not in PARTS
    ]
    if unknown:
        raise UsageError(f"unknown part {quote(unknown[0])}; use {', '.join(PARTS)}")
    if options.part:
        from bench import gpu_parts

        print(json.dumps(getattr(gpu_parts, options.part)(options.device, options.shape)))
        return
    if options.budget <= 0:
        raise UsageError(f"--budget {options.budget:g}: use a positive number of seconds")
    path = local_path(options.report).with_suffix("")
    deadline = time.monotonic() + options.budget
    results: list[Result] = []
    for name in options.parts or PARTS:
        result = run_part(name, options, min(PARTS[name], deadline - time.monotonic()))
        results.append(result)
        print(f"{name}: {result.status}, {result.seconds:.0f} s{f': {result.error}' * bool(result.error)}", flush=True)
        write_atomic(path.with_suffix(".json"), json.dumps([asdict(entry) for entry in results], indent=2) + "\n")
        write_atomic(path.with_suffix(".md"), markdown(results, options))
    print(markdown(results, options))
    print(f"{path}.json, {path}.md", file=sys.stderr)
    bad = [result.part for result in results if result.status in ("failed", "timed out")]
    if bad:
        raise BareloopError(f"{len(bad)} of {len(results)} parts did not pass: {', '.join(bad)}")


def run_part(name: str, options: Any, limit: float) -> Result:
    """Run one part in a subprocess for at most `limit` seconds."""
    if limit < MIN_LIMIT:
        return Result(name, "skipped", error="the budget is spent")
    environment = {**os.environ, "BARELOOP_ISA": "torch", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    process = subprocess.Popen(
        command_of(name, options),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=limit)[0].splitlines()
        timed_out = False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own children, too
        output = process.communicate()[0].splitlines()
        timed_out = True
    seconds = time.monotonic() - start
    if timed_out:
        return Result(name, "timed out", seconds, f"exceeded its limit of {limit:.0f} s", output[-MAX_LINES:])
    if process.returncode:
        return Result(name, "failed", seconds, describe_failure(process.returncode, output), output[-MAX_LINES:])
    if name == "tests":
        return Result(name, "passed", seconds, figures={"pytest": output[-1].strip("= ") if output else ""})
    return Result(name, "passed", seconds, figures=json.loads(output[-1]))


def command_of(name: str, options: Any) -> list[str]:
    """The command line of one part. `tests` collects only files with GPU tests, whose imports a bare image has."""
    if name != "tests":
        program = [sys.executable, "-m", "bench.gpu_check"]
        return [*program, "--part", name, "--device", options.device, "--shape", options.shape]
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    pytest = [sys.executable, "-m", "pytest", "-q", "-rf", "-m", "cuda", "-p", "no:cacheprovider", "--tb=short"]
    return [*pytest, "-o", "addopts=--import-mode=importlib", *files]


def describe_failure(status: int, output: list[str]) -> str:
    """One line: the signal that ended a process, or the last line of its output and its exit status."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    last = next((line.strip() for line in reversed(output) if line.strip()), "no output")
    return f"exit status {status}: {last[:200]}"


def markdown(results: list[Result], options: Any) -> str:
    """The report as Markdown: one table of parts, one of figures, and the output of the parts that failed."""
    lines = [
        f"# GPU check: {options.shape} on {options.device}",
        "",
        "| part | status | seconds | |",
        "|---|---|---:|---|",
    ]
    lines += [f"| {r.part} | {r.status} | {r.seconds:.0f} | {r.error.replace('|', '/')} |" for r in results]
    lines += ["", "| part | figure | value |", "|---|---|---:|"]
    for result in results:
        lines += [f"| {result.part} | {name} | {shown(value)} |" for name, value in result.figures.items()]
    for result in results:
        if result.output:
            lines += ["", f"## {result.part}: {result.status}", "", "```", *result.output, "```"]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A figure with four significant digits; text as it is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value).replace("|", "/")


if __name__ == "__main__":
    run(parser(), main)
