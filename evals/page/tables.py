"""Tables of the report: their words, numbers and links, without their looks. No model, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.runtime.wording import plural
from evals.analysis.comparison import Comparison
from evals.analysis.findings import p_text, readable
from evals.analysis.patterns import Rate, pool
from evals.analysis.tables import choice_name, p_cell, shorten
from evals.data.subjects import GROUPS
from evals.page.questions import link, question_id
from evals.runs.collection import Group, Run, in_order
from evals.runs.summary import COSTS, Accuracy, device_setting, summarize

EXCERPT = 90  # characters of a question in the table of the hardest
RUN_HEADS = ("model", "benchmark", "device")
RATES_NOTE = "Correct answers in percent, with 95 % intervals (Wilson)."


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    detail: str = ""  # shown smaller after the text: an interval, a standard error
    link: str = ""
    value: float | None = None  # sort key, if it differs from the text
    share: float | None = None  # length of the bar behind the text, as a fraction of the cell's width


@dataclass(frozen=True)
class Table:
    """A table of the report. Columns after the first `left` are numbers; `totals` stay below the sorted rows."""

    name: str
    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    totals: Sequence[Sequence[Cell]] = field(default=())
    left: int = 1
    sorts: bool = True


def overview(comparisons: Sequence[Comparison], slugs: Sequence[str]) -> Table:
    """Accuracy of every model on every benchmark, each model's plain run before its weight formats."""
    cells: dict[str, dict[str, Cell]] = {}
    runs: dict[str, Run] = {}
    for comparison, slug in zip(comparisons, slugs, strict=True):
        for run, rate in zip(comparison.group.runs, comparison.overall, strict=True):
            cells.setdefault(run.label, {})[slug] = _rate(rate)._replace(link=f"#{slug}")
            runs.setdefault(run.label, run)
    labels = [run.label for run in in_order(runs.values())]
    rows = [[Cell(label), *(cells[label].get(slug, Cell("")) for slug in slugs)] for label in labels]
    heads = ["model", *(comparison.group.title for comparison in comparisons)]
    return Table("overview", "All runs.", RATES_NOTE, heads, rows)


def metrics(comparison: Comparison) -> Table:
    """The benchmark's own metrics, with counts of truncated prompts, ties and unfinished answers."""
    heads: list[str] = []
    rows = []
    for run in comparison.group.runs:
        summary = summarize(run.header, [run.records[key] for key in comparison.group.keys], {})
        counts = {"truncated prompts": summary.truncated}
        counts |= {} if summary.ties is None else {"ties": summary.ties}
        counts |= {} if summary.generation is None else {"answers cut off": summary.generation.unfinished}
        heads = [*(f"{row.metric} %" for row in summary.metrics), *counts]
        cells = [_accuracy(row.overall) for row in summary.metrics]
        rows.append([Cell(run.label), *cells, *map(_count, counts.values())])
    note = f"Over {plural(len(comparison.group.keys), 'question')}, with standard errors."
    return Table("metrics", "The benchmark's own metrics.", note, ["model", *heads], rows)


def subjects(comparison: Comparison, slug: str) -> Table:
    """Accuracy by subject, of MMLU's groups and overall, and whether the models differ."""
    group, has_several = comparison.group, len(comparison.group.runs) > 1
    rows = []
    for row, p in zip(comparison.subjects, comparison.corrected, strict=True):
        name = Cell(readable(row.subject), link=link(slug, subject=row.subject))
        cells = [name, _count(row.rates[0].n), *map(_rate, row.rates)]
        rows.append([*cells, *([_points(row.spread), _p(p)] if has_several else [])])
    totals, note = [], RATES_NOTE
    if len(rows) > 1:
        rates = {row.subject: row.rates for row in comparison.subjects}
        sections = {**(GROUPS if group.task == "mmlu" else {}), "all": group.subjects}
        for section, names in sections.items():
            members = [rates[name] for name in names if name in rates]
            if 1 < len(members) < len(rows) or section == "all":
                pooled = pool(members)
                cells = [Cell(readable(section)), _count(pooled[0].n), *map(_rate, pooled)]
                totals.append([*cells, *([Cell(""), Cell("")] if has_several else [])])
    if has_several:
        test = "McNemar's test" if len(group.runs) == 2 else "Cochran's Q test"
        note += f" p: whether the models differ there ({test}, corrected by Holm)."
    labels = [run.label for run in group.runs]
    heads = ["subject", "questions", *labels, *(["spread, points", "p"] if has_several else [])]
    return Table("by-subject", "Accuracy by subject.", note, heads, rows, totals)


def pairs(comparison: Comparison, slug: str) -> Table:
    """Differences between every two models on the same questions."""
    rows = []
    for row in comparison.paired:
        first, second = row.first, row.second
        interval = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
        cells = [
            Cell(f"{100 * row.difference:+.1f}", interval, value=row.difference),
            _count(row.only_first, _model_link(slug, {first: "right", second: "wrong"})),
            _count(row.only_second, _model_link(slug, {first: "wrong", second: "right"})),
        ]
        rows.append([*_labels(comparison, first, second), *cells, _p(row.p)])
    note = "First minus second in points, with 95 % intervals (Newcombe). p: McNemar's exact test, not corrected."
    heads = ["first", "second", "difference", "only the first is right", "only the second is right", "p"]
    return Table("pairs", "Differences on the same questions.", note, heads, rows, left=2)


def misses(comparison: Comparison, slug: str) -> Table:
    """Numbers of questions that 0, 1, … all models miss, and what independent mistakes would give."""
    counts, runs = comparison.misses, len(comparison.group.runs)
    columns = zip(counts.observed, counts.expected, counts.low, counts.high, strict=True)
    rows = [
        [
            Cell(f"{missed} of {runs}"),
            _count(observed, link(slug, filter=f"missed-{missed}")),
            Cell(f"{expected:,.1f}", f"{low:,.0f} to {high:,.0f}"),
        ]
        for missed, (observed, expected, low, high) in enumerate(columns)
    ]
    note = (
        "Expected: if mistakes were independent, with the range of 95 % of the permutations "
        f"({p_text(counts.p)}; within each subject {p_text(counts.p_within)})."
    )
    heads = ["missed by", "questions", "expected"]
    return Table("misses", "Questions by how many models miss them.", note, heads, rows, sorts=False)


def overlap(comparison: Comparison, slug: str) -> Table:
    """Overlap of the mistakes of every two models."""
    has_choices = comparison.group.has_choices
    rows = []
    for row in comparison.overlaps:
        both = _model_link(slug, {row.first: "wrong", row.second: "wrong"})
        cells = [_count(row.both_wrong, both), _share(row.jaccard), _share(row.expected_jaccard)]
        cells += [_number(row.kappa, "{:.2f}")]
        cells += [_share(row.same_choice), _share(row.expected_same)] if has_choices else []
        rows.append([*_labels(comparison, row.first, row.second), *cells])
    note = "Percentage of the questions missed by either that both miss; Cohen's kappa for right or wrong."
    heads = ["first", "second", "both wrong", "of those either misses", "expected", "kappa"]
    if has_choices:
        note += (
            " Percentage of the questions missed by both with the same wrong choice. Expected: independent mistakes."
        )
        heads += ["same wrong choice", "expected"]
    return Table("overlap", "Common mistakes of every two models.", note, heads, rows, left=2)


def one_against_all(comparison: Comparison, slug: str) -> Table:
    """Questions that only one model misses, or only one answers correctly."""
    runs = comparison.group.runs
    answers = list(zip(*comparison.group.correct, strict=True))
    rows = []
    for index, run in enumerate(runs):
        cells = [_count(sum(not row[index] for row in answers), _model_link(slug, {index: "wrong"}))]
        for result, others, is_right in (("wrong", "right", False), ("right", "wrong", True)):
            count = sum(row[index] is is_right and row.count(is_right) == 1 for row in answers)
            cells.append(_count(count, _model_link(slug, dict.fromkeys(range(len(runs)), others) | {index: result})))
        rows.append([Cell(run.label), *cells])
    note = "Questions that a model misses, that only it misses, and that only it answers correctly."
    return Table("alone", "One against all others.", note, ["model", "wrong", "only one wrong", "only one right"], rows)


def confidence(comparison: Comparison) -> Iterator[Table]:
    """Calibration and choice bias; nothing without choices."""
    labels = [run.label for run in comparison.group.runs]
    if comparison.calibration:
        rows = [
            [
                Cell(labels[row.run]),
                *(_share(row.confidence), _share(row.accuracy)),
                *(_points(row.confidence - row.accuracy, "+"), _points(row.ece)),
            ]
            for row in comparison.calibration
        ]
        note = (
            "Confidence: mean probability of the chosen answer among the choices. Calibration error: mean distance of "
            "confidence and accuracy over ten bins."
        )
        heads = ["model", "confidence %", "accuracy %", "overconfidence, points", "calibration error, points"]
        yield Table("calibration", "Confidence and accuracy.", note, heads, rows)
    if biases := comparison.choice_bias:
        names = [choice_name(comparison, position) for position in range(len(biases[0].right))]
        rows = [[Cell(labels[row.run]), *map(_share, row.chosen), _p(row.p)] for row in biases]
        total = [Cell("right answers"), *map(_share, biases[0].right), Cell("")]
        note = "In percent. p: whether choices are distributed like right answers (Stuart-Maxwell test)."
        yield Table("places", "Choices by position.", note, ["model", *names, "p"], rows, [total])


def hardest(comparison: Comparison, slug: str) -> Table:
    """The questions that most models miss."""
    has_choices = comparison.group.has_choices
    rows = []
    for question in comparison.hardest:
        text = comparison.group.texts.get(question.key, {}).get("question", "")
        name = f"{readable(question.key[0])}, {question.key[1]}"
        address = link(slug, question=question_id(question.key))
        cells = [Cell(name, shorten(str(text), EXCERPT), address), _count(question.missed)]
        rows.append([*cells, *([_share(math.exp(question.margin))] if has_choices else [])])
    order = ", then the least likely right choice (geometric mean of the models' probabilities, in percent)"
    note = f"Most missed first{order if has_choices else ''}."
    heads = ["question", "missed by", *(["probability of the right choice"] if has_choices else [])]
    return Table("hardest", "The hardest questions.", note, heads, rows)


def costs(groups: Sequence[Group]) -> Table:
    """Cost of every run over all its own questions."""
    runs = [(group, run) for group in groups for run in group.runs]
    summaries = [summarize(run.header, run.records.values(), {}) for _, run in runs]
    columns = {name: [format_cost(summary) for summary in summaries] for name, format_cost in COSTS.items()}
    columns = {name: column for name, column in columns.items() if any(column)}
    rows = [
        [*_run_cells(group, run), _count(len(run.records)), *(Cell(column[index]) for column in columns.values())]
        for index, (group, run) in enumerate(runs)
    ]
    note = "Over all questions of a run, including those that other runs have not answered."
    heads = [*RUN_HEADS, "questions", *columns]
    return Table("costs", "Cost of the runs.", note, heads, rows, left=len(RUN_HEADS), sorts=False)


def files(groups: Sequence[Group]) -> Table:
    """Machine, date and file of every run."""
    rows = [
        [*_run_cells(group, run), Cell(_machine(run)), Cell(str(run.header.get("date", ""))), Cell(str(run.path))]
        for group in groups
        for run in group.runs
    ]
    heads = [*RUN_HEADS, "machine", "started", "run file"]
    return Table("files", "Sources of this page.", "", heads, rows, left=len(heads))


def _machine(run: Run) -> str:
    """Return the machine that computed a run: its description, or the servers' addresses."""
    urls = run.header.get("url")
    return ", ".join(map(str, urls)) if isinstance(urls, list) else str(run.header.get("machine", ""))


def _run_cells(group: Group, run: Run) -> list[Cell]:
    return [Cell(run.label), Cell(group.title), Cell(device_setting(run.header))]


def _labels(comparison: Comparison, *runs: int) -> list[Cell]:
    return [Cell(comparison.group.runs[run].label) for run in runs]


def _model_link(slug: str, wanted: dict[int, str]) -> str:
    """Return a link to the questions that these runs (by index) got "right" or "wrong"."""
    return link(slug, **{f"model{run + 1}": result for run, result in sorted(wanted.items())})


def _rate(rate: Rate) -> Cell:
    interval = f"{100 * rate.low:.0f} to {100 * rate.high:.0f}"
    return Cell(f"{100 * rate.mean:.1f}", interval, value=rate.mean, share=rate.mean)


def _accuracy(accuracy: Accuracy) -> Cell:
    mean, _, error = str(accuracy).partition(" ")
    return Cell(mean, error, value=accuracy.mean, share=accuracy.mean)


def _count(number: int, address: str = "") -> Cell:
    return Cell(f"{number:,}", link=address if number else "", value=number)


def _share(share: float | None) -> Cell:
    """Format a fraction in percent; empty for None and NaN."""
    return _number(math.nan if share is None else 100 * share, "{:.1f}")


def _points(share: float, sign: str = "") -> Cell:
    return _number(100 * share, f"{{:{sign}.1f}}")


def _p(p: float) -> Cell:
    return Cell(p_cell(p), value=p)


def _number(value: float, template: str) -> Cell:
    return Cell("") if math.isnan(value) else Cell(template.format(value), value=value)
