"""Records -> accuracies, costs and tables. All of it is computed from run files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import duration
from evals.scoring import accuracy, pooled_stderr

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Accuracy:
    """Of a subject, a group of them, or all; the standard error is NaN for a single question."""

    name: str
    questions: int
    mean: float
    stderr: float

    def __str__(self) -> str:
        error = "" if math.isnan(self.stderr) else f" ± {100 * self.stderr:.2f}"
        return f"{100 * self.mean:.2f}{error}"


@dataclass(frozen=True)
class Summary:
    """What one run says: accuracies, and what they cost over all its sittings."""

    model: str
    setting: str
    subjects: list[Accuracy]
    groups: list[Accuracy]
    overall: Accuracy
    ties: int  # questions whose likeliest choices are equally likely
    truncated: int
    tokens: int  # of all prompts
    computed: int
    real: float
    cpu: float
    gpu: float | None
    cycles: int | None
    peak_memory: int

    @property
    def saved(self) -> float:
        """The share of the prompts' tokens that were not computed, because an earlier prompt had begun with them."""
        return 1 - self.computed / self.tokens

    @property
    def rate(self) -> float:
        """Questions a second."""
        return self.overall.questions / max(self.real, 1e-9)


def summarize(header: Record, records: Iterable[Record], groups: Mapping[str, Sequence[str]]) -> Summary:
    """A run's header and at least one of its records -> its summary. A group's means are over its questions."""
    listed = sorted(records, key=lambda record: (record["subject"], record["index"]))
    by_subject: dict[str, list[bool]] = {}
    for record in listed:
        by_subject.setdefault(record["subject"], []).append(bool(record["correct"]))
    subjects = [Accuracy(name, len(values), *accuracy(values)) for name, values in by_subject.items()]
    present = {name: [own for own in subjects if own.name in members] for name, members in groups.items()}

    def total(kind: str) -> float | None:
        values = [record["times"][kind] for record in listed if kind in record["times"]]
        return sum(values) if values else None

    cycles = total("cycles")
    return Summary(
        model=short_name(header["model"]),
        setting=setting(header),
        subjects=subjects,
        groups=[pooled(name, members) for name, members in present.items() if members],
        overall=pooled("overall", subjects),
        ties=sum(record["margin"] == 0 for record in listed),
        truncated=sum(bool(record["truncated"]) for record in listed),
        tokens=sum(record["tokens"] for record in listed),
        computed=round(total("computed") or 0),
        real=total("real") or 0.0,
        cpu=total("cpu") or 0.0,
        gpu=total("gpu"),
        cycles=None if cycles is None else round(cycles),
        peak_memory=max(record["times"]["peak_memory"] for record in listed),
    )


def short_name(model: str) -> str:
    """A hub id as it is, a folder by its last part."""
    return model if model.count("/") <= 1 and not model.startswith((".", "/", "~")) else Path(model).name


def pooled(name: str, members: Sequence[Accuracy]) -> Accuracy:
    """The micro average over several subjects."""
    sizes = [member.questions for member in members]
    mean = sum(member.mean * member.questions for member in members) / sum(sizes)
    return Accuracy(name, sum(sizes), mean, pooled_stderr([member.stderr for member in members], sizes))


def setting(header: Record) -> str:
    """In words: 5-shot, through the chat template, on cpu in bfloat16."""
    chat = ("", ", through the chat template", ", through the chat template in one turn")
    split = "" if header["split"] == "test" else f", {header['split']} split"
    quant = "" if header["quant"] == "none" else f", {header['quant']}"
    return (
        f"{header['shots']}-shot{chat[header['chat'] + header['single_turn']]}{split}, "
        f"{header['device']}, {header['dtype']}{quant}"
    )


def cost_lines(summary: Summary) -> list[str]:
    """What a run took, in words."""
    spent = [f"real {duration(summary.real)}", f"CPU {duration(summary.cpu)}"]
    spent += [f"GPU {duration(summary.gpu)}"] if summary.gpu is not None else []
    spent += [f"{summary.cycles / 1e9:.1f} billion CPU cycles"] if summary.cycles is not None else []
    spent += [f"{summary.rate:.2f} questions/s", f"peak memory {summary.peak_memory / 1e6:,.0f} MB"]
    return [
        f"{summary.tokens:,} tokens in the prompts, {100 * summary.saved:.1f} % of them shared and not computed again",
        f"{summary.ties} ties (the first choice wins), {summary.truncated} truncated prompts",
        ", ".join(spent),
    ]


def accuracy_table(summaries: Sequence[Summary]) -> Table:
    """Accuracy ± standard error in percent, by subject, group and overall; for several runs beside their costs."""
    from rich.table import Table
    from rich.text import Text

    table = Table("")
    for summary in summaries:
        table.add_column(Text(summary.model), justify="right")
    sections = [[(own.subjects, own.groups, [own.overall])[part] for own in summaries] for part in range(3)]
    for runs in sections:
        by_name = [{row.name: row for row in own} for own in runs]
        for name in dict.fromkeys(name for own in by_name for name in own):
            sizes = "/".join(dict.fromkeys(str(own[name].questions) for own in by_name if name in own))
            table.add_row(Text(f"{name} ({sizes})"), *(str(own.get(name, "")) for own in by_name))
        table.add_section()
    if len(summaries) > 1:
        table.add_row("questions/s", *(f"{own.rate:.2f}" for own in summaries))
        table.add_row("real", *(duration(own.real) for own in summaries))
        table.add_row("CPU", *(duration(own.cpu) for own in summaries))
        table.add_row("GPU", *("" if own.gpu is None else duration(own.gpu) for own in summaries))
        table.add_row("peak memory, MB", *(f"{own.peak_memory / 1e6:,.0f}" for own in summaries))
        table.add_row("ties", *(str(own.ties) for own in summaries))
        table.add_row("truncated", *(str(own.truncated) for own in summaries))
    return table
