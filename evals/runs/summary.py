"""Records of one run -> accuracies, costs and tables. Everything is computed from run files; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.parser import label
from engine.cli.progress import duration
from evals.data.catalogue import BENCHMARKS, default_split
from evals.runs.run_file import REMOTE
from evals.runs.scoring import accuracy, pooled_stderr

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on a subject, a group of subjects, or all questions. The standard error of one question is NaN."""

    name: str
    questions: int
    mean: float
    stderr: float

    def __str__(self) -> str:
        error = "" if math.isnan(self.stderr) else f" ± {100 * self.stderr:.2f}"
        return f"{100 * self.mean:.2f}{error}"


@dataclass(frozen=True)
class GenerationCost:
    """Cost of generated answers."""

    tokens: int
    seconds: float  # of decoding; on a server also of the prompts
    prompt_tokens_per_second: float | None  # counts computed tokens only, not shared prefixes; None on a server
    unfinished: int  # answers cut off at the token limit

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens per second, over all answers that were decoded in parallel."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class MetricSummary:
    """One metric of a run: by subject, by group of subjects, and over all questions."""

    metric: str
    subjects: list[Accuracy]
    groups: list[Accuracy]
    overall: Accuracy


@dataclass(frozen=True)
class Summary:
    """Accuracies and costs of one run, over all processes that contributed to it."""

    task: str
    model: str
    setting: str
    metrics: list[MetricSummary]  # the first one decides whether an answer is correct
    pools: bool  # whether a mean over all subjects is meaningful
    ties: int | None  # questions whose best choices are equally likely; None for generated answers
    truncated: int
    tokens: int  # of all prompts
    computed: int | None  # None, as the costs below, if a server does not tell
    real: float
    cpu: float | None
    gpu: float | None
    cycles: int | None
    peak_memory: int | None
    generation: GenerationCost | None = None

    @property
    def subjects(self) -> list[Accuracy]:
        return self.metrics[0].subjects

    @property
    def groups(self) -> list[Accuracy]:
        return self.metrics[0].groups

    @property
    def overall(self) -> Accuracy:
        return self.metrics[0].overall

    @property
    def shared_fraction(self) -> float | None:
        """Fraction of the prompt tokens that were reused from the shared prefix of an earlier prompt."""
        return None if self.computed is None else max(0.0, 1 - self.computed / self.tokens)

    @property
    def questions_per_second(self) -> float:
        return self.overall.questions / max(self.real, 1e-9)


def summarize(header: Record, records: Iterable[Record], groups: Mapping[str, Sequence[str]]) -> Summary:
    """Summarize a run from its header and at least one record. `groups`: subjects by group of subjects."""
    ordered = sorted(records, key=lambda record: (record["subject"], record["index"]))
    metrics = dict.fromkeys(name for record in ordered for name in record["metrics"])

    def total(name: str) -> float | None:
        values = [record["times"][name] for record in ordered if name in record["times"]]
        return sum(values) if values else None

    cycles, computed = total("cycles"), total("computed")
    memory = [record["times"]["peak_memory"] for record in ordered if "peak_memory" in record["times"]]
    benchmark = BENCHMARKS.get(header["task"])
    choice_records = [record for record in ordered if "loglikelihoods" in record]
    return Summary(
        task=header["task"],
        model=short_name(header["model"], header.get("adapter")),
        setting=full_setting(header),
        metrics=[summarize_metric(metric, ordered, groups) for metric in metrics],
        pools=benchmark is None or benchmark.pools,
        ties=sum(record["margin"] == 0 for record in choice_records) if choice_records else None,
        truncated=sum(bool(record["truncated"]) for record in ordered),
        tokens=sum(record["tokens"] for record in ordered),
        computed=None if computed is None else round(computed),
        real=total("real") or 0.0,
        cpu=total("cpu"),
        gpu=total("gpu"),
        cycles=None if cycles is None else round(cycles),
        peak_memory=max(memory, default=None),
        generation=None if choice_records else generation_cost(ordered),
    )


def summarize_metric(metric: str, records: Sequence[Record], groups: Mapping[str, Sequence[str]]) -> MetricSummary:
    """Aggregate one metric over records sorted by subject."""
    by_subject: dict[str, list[float]] = {}
    for record in records:
        if metric in record["metrics"]:
            by_subject.setdefault(record["subject"], []).append(record["metrics"][metric])
    subjects = [Accuracy(name, len(values), *accuracy(values)) for name, values in by_subject.items()]
    members = {name: [row for row in subjects if row.name in listed] for name, listed in groups.items()}
    averages = [micro_average(name, rows) for name, rows in members.items() if rows]
    return MetricSummary(metric, subjects, averages, micro_average("overall", subjects))


def generation_cost(records: Sequence[Record]) -> GenerationCost:
    """Sum the prefill and decode costs of generated answers."""
    times = [record["times"] for record in records]
    prompts: float | None = None
    if all("prefill" in part for part in times):
        prompts = sum(part["computed"] for part in times) / max(sum(part["prefill"] for part in times), 1e-9)
    return GenerationCost(
        tokens=sum(record["new_tokens"] for record in records),
        seconds=sum(part.get("decode", part["real"]) for part in times),
        prompt_tokens_per_second=prompts,
        unfinished=sum(record["finish_reason"] == "length" for record in records),
    )


def short_name(model: str, adapter: str | None = None) -> str:
    """Return a hub id unchanged, and the last component of a folder; with an adapter followed by its last component."""
    name = model if model.count("/") <= 1 and not model.startswith((".", "/", "~")) else Path(model).name
    return label(name, adapter)


def run_name(model: str, quant: str, adapter: str | None = None) -> str:
    """Return the model's short name, followed by its weight format unless that is `none`."""
    return short_name(model, adapter) + ("" if quant == "none" else f" {quant}")


def micro_average(name: str, subjects: Sequence[Accuracy]) -> Accuracy:
    """Average over the questions of several subjects."""
    sizes = [subject.questions for subject in subjects]
    mean = sum(subject.mean * subject.questions for subject in subjects) / sum(sizes)
    return Accuracy(name, sum(sizes), mean, pooled_stderr([subject.stderr for subject in subjects], sizes))


def prompt_setting(header: Record) -> str:
    """Describe how the questions were prompted, such as "5-shot, through the chat template"."""
    chat = ("", ", through the chat template", ", through the chat template in one turn")
    split = "" if header["split"] == default_split(header["task"]) else f", {header['split']} split"
    return f"{header['shots']}-shot{chat[header['chat'] + header['single_turn']]}{split}"


def full_setting(header: Record) -> str:
    """Describe prompts, device and number format, such as "5-shot, cpu, bfloat16, int8"."""
    quant = "" if header["quant"] in ("none", REMOTE) else f", {header['quant']}"
    return f"{prompt_setting(header)}, {device_setting(header)}{quant}"


def device_setting(header: Record) -> str:
    """Describe device and number format, such as "cpu, bfloat16"; "remote" for a run on servers."""
    return REMOTE if header["device"] == REMOTE else f"{header['device']}, {header['dtype']}"


def cost_lines(summary: Summary) -> list[str]:
    """Describe the cost of a run, a line per topic."""
    costs = [f"real {duration(summary.real)}"]
    costs += [f"CPU {duration(summary.cpu)}"] if summary.cpu is not None else []
    costs += [f"GPU {duration(summary.gpu)}"] if summary.gpu is not None else []
    costs += [f"{summary.cycles / 1e9:.1f} billion CPU cycles"] if summary.cycles is not None else []
    costs += [f"{summary.questions_per_second:.2f} questions/s"]
    costs += [f"peak memory {summary.peak_memory / 1e6:,.0f} MB"] if summary.peak_memory is not None else []
    ties = [] if summary.ties is None else [f"{summary.ties} ties (the first choice wins)"]
    shared = summary.shared_fraction
    reused = "" if shared is None else f", {100 * shared:.1f} % of them in shared prefixes and not computed again"
    lines = [
        f"{summary.tokens:,} prompt tokens{reused}",
        ", ".join([*ties, f"{summary.truncated} truncated prompts"]),
    ]
    if (generation := summary.generation) is not None:
        rate = generation.prompt_tokens_per_second
        prompts = "" if rate is None else f"; prompts {rate:.0f} tokens/s"
        lines.append(
            f"{generation.tokens:,} answer tokens, {generation.tokens_per_second:.1f} tokens/s{prompts}; "
            f"{generation.unfinished} answers cut off at the limit"
        )
    return [*lines, ", ".join(costs)]


def accuracy_table(summaries: Sequence[Summary]) -> Table:
    """Tabulate accuracy ± standard error in percent by subject, by group and overall; for several runs also costs."""
    from rich.table import Table
    from rich.text import Text

    table = Table("")
    for summary in summaries:
        table.add_column(Text(summary.model), justify="right")
    metrics = list(dict.fromkeys(row.metric for summary in summaries for row in summary.metrics))
    sections = {metric: [_sections(summary, metric) for summary in summaries] for metric in metrics}
    for section in range(3):  # subjects, groups, overall
        by_metric = {
            metric: [{row.name: row for row in parts[section]} for parts in runs] for metric, runs in sections.items()
        }
        for name in dict.fromkeys(name for runs in by_metric.values() for rows in runs for name in rows):
            for metric, runs in by_metric.items():
                sizes = "/".join(dict.fromkeys(str(rows[name].questions) for rows in runs if name in rows))
                label = f"{name} ({sizes})" + (f" {metric}" if len(metrics) > 1 else "")
                table.add_row(Text(label), *(str(rows.get(name, "")) for rows in runs))
        table.add_section()
    if len(summaries) > 1:
        for label, format_cost in COSTS.items():
            cells = [format_cost(summary) for summary in summaries]
            if any(cells):
                table.add_row(label, *cells)
    return table


def _sections(summary: Summary, metric: str) -> list[list[Accuracy]]:
    """Return one metric's rows: [subjects, groups, overall]. Overall is left out if it repeats a single subject."""
    for row in summary.metrics:
        if row.metric == metric:
            is_single = [subject.name for subject in row.subjects] == [summary.task]
            return [row.subjects, row.groups, [row.overall] if summary.pools and not is_single else []]
    return [[], [], []]


COSTS: dict[str, Callable[[Summary], str]] = {
    "questions/s": lambda run: f"{run.questions_per_second:.2f}",
    "answers: tokens/s": lambda run: f"{run.generation.tokens_per_second:.1f}" if run.generation else "",
    "real": lambda run: duration(run.real),
    "CPU": lambda run: "" if run.cpu is None else duration(run.cpu),
    "GPU": lambda run: "" if run.gpu is None else duration(run.gpu),
    "peak memory, MB": lambda run: "" if run.peak_memory is None else f"{run.peak_memory / 1e6:,.0f}",
    "ties": lambda run: "" if run.ties is None else str(run.ties),
    "truncated": lambda run: str(run.truncated),
}
