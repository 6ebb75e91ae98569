"""Records -> accuracies, costs and tables. All of it is computed from run files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.progress import duration
from evals.data.catalogue import BENCHMARKS, split_of
from evals.runs.scoring import accuracy, pooled_stderr

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
class Writing:
    """What the model's own words took."""

    tokens: int
    seconds: float
    prompt_tokens_per_second: float  # of those that were computed
    unfinished: int  # answers that were cut off at the most tokens they may have

    @property
    def tokens_per_second(self) -> float:
        """Of all answers that were written side by side."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Measure:
    """One metric of a run, by subject, by group of subjects, and of all questions."""

    metric: str
    subjects: list[Accuracy]
    groups: list[Accuracy]
    overall: Accuracy


@dataclass(frozen=True)
class Summary:
    """What one run says: accuracies, and what they cost over all its sittings."""

    task: str
    model: str
    setting: str
    measures: list[Measure]  # the one that decides whether an answer is correct comes first
    pools: bool  # whether the figure over all subjects says anything
    ties: int | None  # questions whose likeliest choices are equally likely, where there are choices
    truncated: int
    tokens: int  # of all prompts
    computed: int
    real: float
    cpu: float
    gpu: float | None
    cycles: int | None
    peak_memory: int
    writing: Writing | None = None

    @property
    def subjects(self) -> list[Accuracy]:
        return self.measures[0].subjects

    @property
    def groups(self) -> list[Accuracy]:
        return self.measures[0].groups

    @property
    def overall(self) -> Accuracy:
        return self.measures[0].overall

    @property
    def saved(self) -> float:
        """The share of the prompts' tokens that were not computed, because an earlier prompt had begun with them."""
        return max(0.0, 1 - self.computed / self.tokens)

    @property
    def rate(self) -> float:
        """Questions a second."""
        return self.overall.questions / max(self.real, 1e-9)


def summarize(header: Record, records: Iterable[Record], groups: Mapping[str, Sequence[str]]) -> Summary:
    """A run's header and at least one of its records -> its summary. A group's means are over its questions."""
    listed = sorted(records, key=lambda record: (record["subject"], record["index"]))
    metrics = dict.fromkeys(name for record in listed for name in record["metrics"])

    def total(kind: str) -> float | None:
        values = [record["times"][kind] for record in listed if kind in record["times"]]
        return sum(values) if values else None

    cycles = total("cycles")
    benchmark = BENCHMARKS.get(header["task"])
    choices = [record for record in listed if "loglikelihoods" in record]
    return Summary(
        task=header["task"],
        model=short_name(header["model"]),
        setting=setting(header),
        measures=[measure(metric, listed, groups) for metric in metrics],
        pools=benchmark is None or benchmark.pools,
        ties=sum(record["margin"] == 0 for record in choices) if choices else None,
        truncated=sum(bool(record["truncated"]) for record in listed),
        tokens=sum(record["tokens"] for record in listed),
        computed=round(total("computed") or 0),
        real=total("real") or 0.0,
        cpu=total("cpu") or 0.0,
        gpu=total("gpu"),
        cycles=None if cycles is None else round(cycles),
        peak_memory=max(record["times"]["peak_memory"] for record in listed),
        writing=None if choices else writing(listed),
    )


def measure(metric: str, records: Sequence[Record], groups: Mapping[str, Sequence[str]]) -> Measure:
    """What records (in order) say by one of their metrics."""
    by_subject: dict[str, list[float]] = {}
    for record in records:
        if metric in record["metrics"]:
            by_subject.setdefault(record["subject"], []).append(record["metrics"][metric])
    subjects = [Accuracy(name, len(values), *accuracy(values)) for name, values in by_subject.items()]
    present = {name: [own for own in subjects if own.name in members] for name, members in groups.items()}
    pools = [pooled(name, members) for name, members in present.items() if members]
    return Measure(metric, subjects, pools, pooled("overall", subjects))


def writing(records: Sequence[Record]) -> Writing:
    """The rates at which answers were read and written."""
    times = [record["times"] for record in records]
    prefill = sum(own["prefill"] for own in times)
    return Writing(
        tokens=sum(record["new_tokens"] for record in records),
        seconds=sum(own["decode"] for own in times),
        prompt_tokens_per_second=sum(own["computed"] for own in times) / max(prefill, 1e-9),
        unfinished=sum(record["finish_reason"] == "length" for record in records),
    )


def short_name(model: str) -> str:
    """A hub id as it is, a folder by its last part."""
    return model if model.count("/") <= 1 and not model.startswith((".", "/", "~")) else Path(model).name


def run_name(model: str, quant: str) -> str:
    """A model's short name, and its weight format where it has one."""
    return short_name(model) + ("" if quant == "none" else f" {quant}")


def pooled(name: str, members: Sequence[Accuracy]) -> Accuracy:
    """The micro average over several subjects."""
    sizes = [member.questions for member in members]
    mean = sum(member.mean * member.questions for member in members) / sum(sizes)
    return Accuracy(name, sum(sizes), mean, pooled_stderr([member.stderr for member in members], sizes))


def asked(header: Record) -> str:
    """How the questions were asked, in words: 5-shot, through the chat template."""
    chat = ("", ", through the chat template", ", through the chat template in one turn")
    split = "" if header["split"] == split_of(header["task"]) else f", {header['split']} split"
    return f"{header['shots']}-shot{chat[header['chat'] + header['single_turn']]}{split}"


def setting(header: Record) -> str:
    """How, and on what: 5-shot, cpu, bfloat16, int8."""
    quant = "" if header["quant"] == "none" else f", {header['quant']}"
    return f"{asked(header)}, {header['device']}, {header['dtype']}{quant}"


def cost_lines(summary: Summary) -> list[str]:
    """What a run took, in words."""
    spent = [f"real {duration(summary.real)}", f"CPU {duration(summary.cpu)}"]
    spent += [f"GPU {duration(summary.gpu)}"] if summary.gpu is not None else []
    spent += [f"{summary.cycles / 1e9:.1f} billion CPU cycles"] if summary.cycles is not None else []
    spent += [f"{summary.rate:.2f} questions/s", f"peak memory {summary.peak_memory / 1e6:,.0f} MB"]
    ties = [] if summary.ties is None else [f"{summary.ties} ties (the first choice wins)"]
    lines = [
        f"{summary.tokens:,} tokens in the prompts, {100 * summary.saved:.1f} % of them shared and not computed again",
        ", ".join([*ties, f"{summary.truncated} truncated prompts"]),
    ]
    if (own := summary.writing) is not None:
        lines.append(
            f"{own.tokens:,} tokens in the answers, {own.tokens_per_second:.1f} tokens/s; of the prompts "
            f"{own.prompt_tokens_per_second:.0f} tokens/s; {own.unfinished} answers cut off at their limit"
        )
    return [*lines, ", ".join(spent)]


def accuracy_table(summaries: Sequence[Summary]) -> Table:
    """Accuracy ± standard error in percent, by subject, group and overall; for several runs beside their costs."""
    from rich.table import Table
    from rich.text import Text

    table = Table("")
    for own in summaries:
        table.add_column(Text(own.model), justify="right")
    metrics = list(dict.fromkeys(one.metric for own in summaries for one in own.measures))
    by_metric = {metric: [_sections(own, metric) for own in summaries] for metric in metrics}
    for part in range(3):
        found = {metric: [{row.name: row for row in own[part]} for own in runs] for metric, runs in by_metric.items()}
        for name in dict.fromkeys(name for runs in found.values() for own in runs for name in own):
            for metric, runs in found.items():
                sizes = "/".join(dict.fromkeys(str(own[name].questions) for own in runs if name in own))
                label = f"{name} ({sizes})" + (f" {metric}" if len(metrics) > 1 else "")
                table.add_row(Text(label), *(str(own.get(name, "")) for own in runs))
        table.add_section()
    if len(summaries) > 1:
        for label, told in COSTS.items():
            cells = [told(own) for own in summaries]
            if any(cells):
                table.add_row(label, *cells)
    return table


def _sections(own: Summary, metric: str) -> list[list[Accuracy]]:
    """What a run says by one metric: of subjects, of groups, and overall where there is more than one subject."""
    for one in own.measures:
        if one.metric == metric:
            single = [row.name for row in one.subjects] == [own.task]
            return [one.subjects, one.groups, [one.overall] if own.pools and not single else []]
    return [[], [], []]


COSTS: dict[str, Callable[[Summary], str]] = {
    "questions/s": lambda own: f"{own.rate:.2f}",
    "answers: tokens/s": lambda own: f"{own.writing.tokens_per_second:.1f}" if own.writing else "",
    "real": lambda own: duration(own.real),
    "CPU": lambda own: duration(own.cpu),
    "GPU": lambda own: "" if own.gpu is None else duration(own.gpu),
    "peak memory, MB": lambda own: f"{own.peak_memory / 1e6:,.0f}",
    "ties": lambda own: "" if own.ties is None else str(own.ties),
    "truncated": lambda own: str(own.truncated),
}
