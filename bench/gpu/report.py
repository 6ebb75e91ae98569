"""The report of `bench.gpu_check` as Markdown: parts, figures, ratios between parts, and goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SMALL, LARGE = "llama-3.2-1b", "qwen2.5-7b"  # shapes
MMLU = "all of MMLU, projected, s"  # the name of a figure


@dataclass
class Result:
    """The outcome of one part."""

    part: str
    shape: str
    status: str  # passed, failed, timed out, skipped
    seconds: float = 0.0
    error: str = ""  # one line
    output: list[str] = field(default_factory=list)  # the last lines, without figures
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.part} {self.shape}".strip()


@dataclass(frozen=True)
class Figures:
    """The figures of all parts."""

    results: Sequence[Result]

    def get(self, part: str, shape: str, name: str) -> float | None:
        """A figure; None if it was not measured."""
        found = (r.figures.get(name) for r in self.results if (r.part, r.shape) == (part, shape))
        return next((value for value in found if isinstance(value, float)), None)

    def decode(self, part: str, shape: str, rows: int, kind: str = "") -> float | None:
        """Tokens per second of decoding."""
        return self.get(part, shape, f"decode {rows}{kind}, tokens/s")


@dataclass(frozen=True)
class Goal:
    """What a figure should be at least, or at most."""

    text: str
    seen: Callable[[Figures], float | None]
    at_least: float = 0.0
    at_most: float = float("inf")


def _bandwidth_share(shape: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.get("bfloat16", shape, "decode 1, share of the read bandwidth")


GOALS = (
    Goal(f"{SMALL}, bfloat16, 1 row: share of the read bandwidth >= 0.60", _bandwidth_share(SMALL), 0.6),
    Goal(f"{LARGE}, bfloat16, 1 row: share of the read bandwidth >= 0.85", _bandwidth_share(LARGE), 0.85),
    Goal(
        f"{SMALL}, bfloat16: 16 rows >= 12 times the tokens/s of 1 row",
        lambda figures: ratio(figures.decode("bfloat16", SMALL, 16), figures.decode("bfloat16", SMALL, 1)),
        12,
    ),
    Goal(f"{SMALL}: MMLU, 5-shot, projected < 60 s", lambda figures: figures.get("scoring", SMALL, MMLU), at_most=60),
    Goal(
        f"{LARGE}, 1 row: int4 >= 2.2 times the tokens/s of bfloat16",
        lambda figures: ratio(figures.decode("int4", LARGE, 1), figures.decode("bfloat16", LARGE, 1)),
        2.2,
    ),
)


def ratio(value: float | None, base: float | None) -> float | None:
    """The quotient of two figures; None if one was not measured."""
    return None if value is None or not base else value / base


def ratios(figures: Figures) -> dict[str, float]:
    """Tokens per second of decoding, as ratios of parts with the same shape."""
    found: dict[str, float | None] = {}
    for shape in dict.fromkeys(result.shape for result in figures.results if result.shape):
        for part in ("bfloat16", "int8", "int4", "transformers"):
            pair = figures.decode(part, shape, 16), figures.decode(part, shape, 1)
            found[f"{shape}, {part}: 16 rows / 1 row"] = ratio(*pair)
        for rows in (1, 16):
            base = figures.decode("bfloat16", shape, rows)
            for kind in (", top-p", ", without graphs"):
                value = figures.decode("bfloat16", shape, rows, kind)
                found[f"{shape}, bfloat16, rows: {rows}{kind} / default"] = ratio(value, base)
            for part in ("int8", "int4"):
                found[f"{shape}, rows: {rows}, {part} / bfloat16"] = ratio(figures.decode(part, shape, rows), base)
            other = figures.decode("transformers", shape, rows)
            found[f"{shape}, bfloat16, rows: {rows}, bareloop / transformers"] = ratio(base, other)
    return {name: value for name, value in found.items() if value is not None}


def markdown(results: Sequence[Result], device: str) -> str:
    """Tables of parts, figures, ratios and goals; before the last two the output of parts that printed something."""
    figures = Figures(results)
    lines = [f"# GPU check on {device}", "", "| part | status | seconds | |", "|---|---|---:|---|"]
    lines += [f"| {r.title} | {r.status} | {r.seconds:.0f} | {shown(r.error)} |" for r in results]
    lines += ["", "| part | figure | value |", "|---|---|---:|"]
    for result in results:
        lines += [f"| {result.title} | {shown(name)} | {shown(value)} |" for name, value in result.figures.items()]
    for result in results:
        if result.output:
            lines += ["", f"## {result.title}: {result.status}", "", "```", *result.output, "```"]
    lines += ["", "## Ratios of tokens per second", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in ratios(figures).items()]
    lines += ["", "## Goals", "", "| goal | seen | met |", "|---|---:|---|"]
    for goal in GOALS:
        seen = goal.seen(figures)
        if seen is None:
            lines.append(f"| {goal.text} | - | not measured |")
        else:
            lines.append(f"| {goal.text} | {seen:.2f} | {'yes' if goal.at_least <= seen <= goal.at_most else 'no'} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A figure with four significant digits, or text, for a cell of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(name)} {shown(inner)}" for name, inner in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value).replace("|", "/")
