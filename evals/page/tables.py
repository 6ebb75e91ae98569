"""What a report's tables say of a group of runs: their words and numbers, without their looks. No model, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from evals.analysis.comparison import Comparison
from evals.analysis.findings import count, p_words, plain
from evals.analysis.patterns import Rate
from evals.analysis.statistics import wilson
from evals.analysis.tables import p_cell, place_name, short
from evals.data.subjects import GROUPS
from evals.page.questions import link, question_id
from evals.runs.collection import Group, Run
from evals.runs.summary import COSTS, Accuracy, summarize

EXCERPT = 90  # characters of a question in the table of the hardest
RUN = ("model", "benchmark", "device")
RATES = "The share of right answers in percent, with its 95 % interval (Wilson's)."


class Cell(NamedTuple):
    """A place of a table."""

    text: str
    small: str = ""  # after it: an interval, a number of questions
    link: str = ""
    value: float | None = None  # what its column is sorted by, where that is not its text
    share: float | None = None  # of its width that is tinted


@dataclass(frozen=True)
class Table:
    """Rows under heads. The columns after the first `left` are numbers; totals stay below, however it is sorted."""

    name: str
    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    totals: Sequence[Sequence[Cell]] = field(default=())
    left: int = 1
    sorts: bool = True


def overview(comparisons: Sequence[Comparison], slugs: Sequence[str]) -> Table:
    """Every model by every benchmark."""
    rows: dict[str, dict[str, Cell]] = {}
    for own, slug in zip(comparisons, slugs, strict=True):
        for run, rate in zip(own.group.runs, own.overall, strict=True):
            rows.setdefault(run.label, {})[slug] = _rate(rate)._replace(link=f"#{slug}")
    cells = [[Cell(label), *(own.get(slug, Cell("")) for slug in slugs)] for label, own in rows.items()]
    return Table("overview", "All runs.", RATES, ["model", *(own.group.title for own in comparisons)], cells)


def metrics(own: Comparison) -> Table:
    """The benchmark's own metrics, and what else is to be known of the answers."""
    heads: list[str] = []
    rows = []
    for run in own.group.runs:
        summary = summarize(run.header, [run.records[key] for key in own.group.keys], {})
        counts = {"truncated prompts": summary.truncated}
        counts |= {} if summary.ties is None else {"ties": summary.ties}
        counts |= {} if summary.writing is None else {"answers cut off": summary.writing.unfinished}
        heads = [*(f"{one.metric} %" for one in summary.measures), *counts]
        cells = [_accuracy(one.overall) for one in summary.measures]
        rows.append([Cell(run.label), *cells, *map(_count, counts.values())])
    note = f"Over {count(len(own.group.keys), 'question')}, with standard errors."
    return Table("metrics", "The benchmark's own metrics.", note, ["model", *heads], rows)


def subjects(own: Comparison, slug: str) -> Table:
    """Right answers by subject, with MMLU's groups and all together; and where the models differ."""
    several = len(own.group.runs) > 1
    rows = []
    for row, p in zip(own.subjects, own.corrected, strict=True):
        name = Cell(plain(row.subject), link=link(slug, subject=row.subject))
        cells = [name, _count(row.rates[0].n), *map(_rate, row.rates)]
        rows.append([*cells, *([_points(row.spread), _p(p)] if several else [])])
    totals, note = [], RATES
    if len(rows) > 1:
        rates = {row.subject: row.rates for row in own.subjects}
        sums = {plain(name): [rates[one] for one in held if one in rates] for name, held in _sections(own.group)}
        totals = [_total(name, held) for name, held in sums.items() if 1 < len(held) < len(rows) or name == "all"]
        totals = [[*row, *([Cell(""), Cell("")] if several else [])] for row in totals]
    if several:
        test = "McNemar's test" if len(own.group.runs) == 2 else "Cochran's Q test"
        note += f" p: whether the models differ there ({test}, corrected by Holm)."
    labels = [run.label for run in own.group.runs]
    heads = ["subject", "questions", *labels, *(["spread, points", "p"] if several else [])]
    return Table("by-subject", "Accuracy by subject.", note, heads, rows, totals)


def pairs(own: Comparison, slug: str) -> Table:
    """Every two runs on the same questions."""
    rows = []
    for pair in own.paired:
        first, second = pair.first, pair.second
        interval = f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}"
        cells = [
            Cell(f"{100 * pair.difference:+.1f}", interval, value=pair.difference),
            _count(pair.only_first, _link(slug, {first: "right", second: "wrong"})),
            _count(pair.only_second, _link(slug, {first: "wrong", second: "right"})),
        ]
        rows.append([*_names(own, first, second), *cells, _p(pair.p)])
    note = "In points, with the 95 % interval (Newcombe's); p: McNemar's test, exact, of each pair alone."
    heads = ["first", "second", "difference", "only the first is right", "only the second is right", "p"]
    return Table("pairs", "Differences on the same questions.", note, heads, rows, left=2)


def misses(own: Comparison, slug: str) -> Table:
    """How many questions are missed by so many runs, and what independent mistakes would give."""
    found = own.misses
    columns = zip(found.observed, found.expected, found.low, found.high, strict=True)
    rows = [
        [
            Cell(f"{missed} of {len(own.group.runs)}"),
            _count(seen, link(slug, filter=f"missed-{missed}")),
            Cell(f"{expected:,.1f}", f"{low:,.0f} to {high:,.0f}"),
        ]
        for missed, (seen, expected, low, high) in enumerate(columns)
    ]
    note = (
        "Beside what independent mistakes would give, with 95 % of the permutations "
        f"({p_words(found.p)}; within each subject {p_words(found.p_within)})."
    )
    heads = ["missed by", "questions", "expected"]
    return Table("misses", "Questions by how many models miss them.", note, heads, rows, sorts=False)


def overlap(own: Comparison, slug: str) -> Table:
    """How alike every two runs' mistakes are."""
    rows = []
    for pair in own.overlaps:
        both = _link(slug, {pair.first: "wrong", pair.second: "wrong"})
        cells = [_count(pair.both_wrong, both), _share(pair.jaccard), _share(pair.expected_jaccard), _kappa(pair.kappa)]
        same = [_share(pair.same_choice), _share(pair.expected_same)] if own.group.has_choices else []
        rows.append([*_names(own, pair.first, pair.second), *cells, *same])
    note = "Of what either misses the share that both miss, in percent; Cohen's kappa of right and wrong."
    heads = ["first", "second", "both wrong", "of what either misses", "expected", "kappa"]
    if own.group.has_choices:
        note += " Of what both miss the share with the same wrong choice. Expected: by independent mistakes."
        heads += ["same wrong choice", "expected"]
    return Table("overlap", "Common mistakes of every two models.", note, heads, rows, left=2)


def alone(own: Comparison, slug: str) -> Table:
    """What tells one run from all others."""
    runs = own.group.runs
    answers = list(zip(*own.group.correct, strict=True))
    rows = []
    for place, run in enumerate(runs):
        cells = [_count(sum(not one[place] for one in answers), _link(slug, {place: "wrong"}))]
        for kind, other, right in (("wrong", "right", False), ("right", "wrong", True)):
            held = sum(one[place] is right and one.count(right) == 1 for one in answers)
            cells.append(_count(held, _link(slug, dict.fromkeys(range(len(runs)), other) | {place: kind})))
        rows.append([Cell(run.label), *cells])
    note = "What a model misses, what it alone misses, and what it alone gets right."
    return Table("alone", "One against all others.", note, ["model", "wrong", "alone wrong", "alone right"], rows)


def confidence(own: Comparison) -> Iterator[Table]:
    """Whether runs know what they know, and whether they prefer a place; only where there are choices."""
    labels = [run.label for run in own.group.runs]
    if found := own.calibration:
        rows = [
            [
                Cell(labels[one.run]),
                *(_share(one.confidence), _share(one.accuracy)),
                *(_points(one.confidence - one.accuracy, "+"), _points(one.ece)),
            ]
            for one in found
        ]
        note = (
            "Confidence is the share of probability that the chosen one has among the choices, in the mean. "
            "The calibration error is the mean distance of confidence and accuracy over ten bins."
        )
        heads = ["model", "confidence %", "accuracy %", "too sure, points", "calibration error, points"]
        yield Table("calibration", "How sure, and how right.", note, heads, rows)
    if biases := own.choice_bias:
        places = [place_name(own, place) for place in range(len(biases[0].right))]
        rows = [[Cell(labels[one.run]), *map(_share, one.chosen), _p(one.p)] for one in biases]
        truth = [Cell("what is right"), *map(_share, biases[0].right), Cell("")]
        note = "In percent; p: whether what is chosen is spread as what is right (Stuart's and Maxwell's test)."
        yield Table("places", "Choices by their place.", note, ["model", *places, "p"], rows, [truth])


def hardest(own: Comparison, slug: str) -> Table:
    """The questions that most runs miss."""
    rows = []
    for one in own.hardest:
        excerpt = short(str(own.group.texts.get(one.key, {}).get("question", "")), EXCERPT)
        name = f"{plain(one.key[0])}, {one.key[1]}"
        cells = [Cell(name, excerpt, link(slug, question=question_id(one.key))), _count(one.missed)]
        rows.append([*cells, *([_share(math.exp(one.margin))] if own.group.has_choices else [])])
    sure = ", then those whose right choice has least probability (the models' geometric mean, in percent)"
    note = f"Those first that most models miss{sure if own.group.has_choices else ''}."
    heads = ["question", "missed by", *(["probability of what is right"] if own.group.has_choices else [])]
    return Table("hardest", "The hardest questions.", note, heads, rows)


def costs(groups: Sequence[Group]) -> Table:
    """What every run took, over all its own questions."""
    found = [(group, run, summarize(run.header, run.records.values(), {})) for group in groups for run in group.runs]
    told = {name: [tell(own) for _, _, own in found] for name, tell in COSTS.items()}
    told = {name: column for name, column in told.items() if any(column)}
    rows = [
        [*_run(group, run), _count(len(run.records)), *(Cell(column[place]) for column in told.values())]
        for place, (group, run, _) in enumerate(found)
    ]
    note = "Over all questions of a run, also those that others have not answered, and over all its sittings."
    heads = [*RUN, "questions", *told]
    return Table("costs", "What the runs took.", note, heads, rows, left=len(RUN), sorts=False)


def files(groups: Sequence[Group]) -> Table:
    """Where and when every run was made, and where it is written."""
    rows = [
        [*_run(group, run), *(Cell(str(run.header.get(name, ""))) for name in ("machine", "date")), Cell(str(run.path))]
        for group in groups
        for run in group.runs
    ]
    heads = [*RUN, "machine", "begun", "run file"]
    return Table("files", "What this page is made of.", "", heads, rows, left=len(heads))


def _run(group: Group, run: Run) -> list[Cell]:
    return [Cell(run.label), Cell(group.title), Cell(f"{run.header['device']}, {run.header['dtype']}")]


def _names(own: Comparison, *places: int) -> list[Cell]:
    return [Cell(own.group.runs[place].label) for place in places]


def _link(slug: str, wanted: dict[int, str]) -> str:
    """The questions that these runs got right or wrong."""
    return link(slug, **{f"model{place + 1}": kind for place, kind in sorted(wanted.items())})


def _sections(group: Group) -> list[tuple[str, Sequence[str]]]:
    """What several subjects are together: MMLU's groups, and all."""
    return [*(GROUPS.items() if group.task == "mmlu" else ()), ("all", group.subjects)]


def _total(name: str, members: Sequence[Sequence[Rate]]) -> list[Cell]:
    """Several subjects as one row."""
    sums = [(sum(rate.right for rate in own), sum(rate.n for rate in own)) for own in zip(*members, strict=True)]
    return [Cell(name), _count(sums[0][1]), *(_rate(Rate(right, n, *wilson(right, n))) for right, n in sums)]


def _rate(rate: Rate) -> Cell:
    interval = f"{100 * rate.low:.0f} to {100 * rate.high:.0f}"
    return Cell(f"{100 * rate.mean:.1f}", interval, value=rate.mean, share=rate.mean)


def _accuracy(own: Accuracy) -> Cell:
    mean, _, error = str(own).partition(" ")
    return Cell(mean, error, value=own.mean, share=own.mean)


def _count(number: int, address: str = "") -> Cell:
    return Cell(f"{number:,}", link=address if number else "", value=number)


def _share(share: float | None) -> Cell:
    """In percent; what cannot be said is a dash."""
    return _told(math.nan if share is None else share, "{:.1f}", 100)


def _points(share: float, sign: str = "") -> Cell:
    return _told(share, f"{{:{sign}.1f}}", 100)


def _kappa(value: float) -> Cell:
    return _told(value, "{:.2f}")


def _p(p: float) -> Cell:
    return Cell(p_cell(p), value=p)


def _told(value: float, shape: str, times: int = 1) -> Cell:
    return Cell("") if math.isnan(value) else Cell(shape.format(times * value), value=value)
