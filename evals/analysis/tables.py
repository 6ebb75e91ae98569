"""A comparison of runs -> tables, for a terminal of any width and for Markdown. Models are numbered, with a key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.cli.parser import printable
from evals.analysis.findings import count, notes, number, words
from evals.analysis.statistics import holm
from evals.data.catalogue import BENCHMARKS
from evals.runs.measurements import markdown as table_lines
from evals.runs.run_file import right_choices

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from evals.analysis.comparison import Comparison
    from evals.analysis.patterns import Hard, Rate

SHORT = 200  # letters of a question
ANSWER = 60  # letters of an answer
NO_TEXTS = "The texts of the questions were not saved; score with --save-question-data to see them here."


@dataclass(frozen=True)
class Sheet:
    """A table: its first column is of names, the others are of numbers. Heads may be broken at their line ends."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""


def sheets(comparison: Comparison) -> list[Sheet]:
    """All tables of a comparison that have something to say."""
    tables = (key, accuracies, differences, misses, overlaps, places, confidences)
    return [sheet for sheet in (table(comparison) for table in tables) if sheet.rows]


def key(comparison: Comparison) -> Sheet:
    """The models, by the numbers that stand for them in the other tables."""
    rows = [
        [f"{place} {own.label}", f"{100 * rate.mean:.2f}", interval(rate.low, rate.high), f"{rate.n - rate.right:,}"]
        for place, (own, rate) in enumerate(zip(comparison.group.runs, comparison.overall, strict=True), 1)
    ]
    questions = count(len(comparison.group.keys), "question")
    return Sheet(f"Models, on {questions}", ["model", "accuracy\n%", "95 %\ninterval", "misses"], rows)


def accuracies(comparison: Comparison) -> Sheet:
    """By subject, with Wilson's intervals."""

    def told(rate: Rate) -> str:
        return f"{100 * rate.mean:.1f} ({100 * rate.low:.0f}-{100 * rate.high:.0f})"

    rows = [
        [f"{row.subject} ({row.rates[0].n:,})", *map(told, row.rates), p_cell(p)]
        for row, p in zip(comparison.subjects, comparison.corrected, strict=True)
    ]
    if len(rows) > 1:
        rows.append([f"overall ({len(comparison.group.keys):,})", *map(told, comparison.overall), ""])
    test = "McNemar's test" if len(comparison.group.runs) == 2 else "Cochran's Q test"
    corrected = ", corrected by Holm" if len(rows) > 1 else ""
    note = f"In percent, with 95 % intervals (Wilson). p: whether the models differ there ({test}{corrected})."
    return Sheet("Accuracy by subject", ["subject (questions)", *numbers(comparison), "p"], rows, note)


def differences(comparison: Comparison) -> Sheet:
    """Pair by pair, on the same questions."""
    rows = [
        [
            pair(own.first, own.second),
            f"{own.only_first:,}",
            f"{own.only_second:,}",
            f"{100 * own.difference:+.2f}",
            f"{100 * own.low:+.1f} to {100 * own.high:+.1f}",
            p_cell(p),
        ]
        for own, p in zip(comparison.paired, holm([own.p for own in comparison.paired]), strict=True)
    ]
    corrected = ", corrected by Holm" if len(rows) > 1 else ""
    heads = ["models", "only 1st\nright", "only 2nd\nright", "difference,\npoints", "95 %\ninterval", "p"]
    return Sheet("Differences", heads, rows, f"The first less the second. p: McNemar's test{corrected}.")


def misses(comparison: Comparison) -> Sheet:
    """How many questions so many models miss."""
    own, runs = comparison.misses, len(comparison.group.runs)
    names = ["none", *map(str, range(1, runs)), f"all {runs}"]
    rows = [
        [name, f"{observed:,}", number(expected), f"{low:,.0f} to {high:,.0f}"]
        for name, observed, expected, low, high in zip(
            names, own.observed, own.expected, own.low, own.high, strict=True
        )
    ]
    heads = ["missed by", "questions", "if\nindependent", "in 95 %\nof shuffles"]
    within = f"; within each subject: {p_cell(own.p_within)}" if len(comparison.subjects) > 1 else ""
    note = f"Permutation test of how unevenly mistakes fall on the questions: {p_cell(own.p)}{within}."
    return Sheet("Questions by how many models miss them", heads, rows, note)


def overlaps(comparison: Comparison) -> Sheet:
    """How alike two models' mistakes are."""
    choices = comparison.group.has_choices
    rows = [
        [
            pair(own.first, own.second),
            f"{own.both_wrong:,}",
            decimal(own.jaccard),
            decimal(own.expected_jaccard),
            decimal(own.kappa),
            *([percent_cell(own.same_choice), percent_cell(own.expected_same)] if choices else []),
        ]
        for own in comparison.overlaps
    ]
    heads = ["models", "both\nmiss", "Jaccard", "by\nchance", "kappa"]
    heads += ["same wrong\nchoice, %", "by\nchance"] if choices else []
    note = (
        "Jaccard: both miss, of what either misses. kappa: Cohen's, of right and wrong; 0 is chance, 1 full agreement."
    )
    return Sheet("Mistakes in common", heads, rows, note)


def places(comparison: Comparison) -> Sheet:
    """How often each place is chosen, beside how often it is right."""
    biases = comparison.choice_bias
    if not biases:
        return Sheet("", [], [])
    rows = [["right", *(f"{100 * share:.1f}" for share in biases[0].right), ""]]
    rows += [[str(own.run + 1), *(f"{100 * share:.1f}" for share in own.chosen), p_cell(own.p)] for own in biases]
    heads = [place_name(comparison, place) for place in range(len(biases[0].right))]
    note = "p: whether a model chooses each as often as it is right (Stuart and Maxwell's test)."
    return Sheet(f"{'Letters' if lettered(comparison) else 'Choices'} chosen, %", ["model", *heads, "p"], rows, note)


def confidences(comparison: Comparison) -> Sheet:
    """Whether models are right as often as they are sure."""
    rows = [
        [str(own.run + 1), f"{100 * own.accuracy:.1f}", f"{100 * own.confidence:.1f}", f"{100 * own.ece:.1f}"]
        for own in comparison.calibration
    ]
    note = "Confidence: the mean probability of what is chosen, among the choices. ECE: expected calibration error."
    return Sheet("Calibration", ["model", "accuracy\n%", "confidence\n%", "ECE\npoints"], rows, note)


def hard_lines(comparison: Comparison) -> list[str]:
    """The hardest questions, a line each: where it is, its text if saved, what is right, what the models answered."""
    return [_hard(comparison, own) for own in comparison.hardest]


def _hard(comparison: Comparison, own: Hard) -> str:
    group = comparison.group
    text = group.texts.get(own.key, {})
    records = [run.records[own.key] for run in group.runs]
    answers: dict[str, list[str]] = {}
    for run, record in enumerate(records, 1):
        said = _answer(comparison, record["prediction"], text)
        answers.setdefault(said if not record["correct"] else f"{said} (right)", []).append(str(run))
    gold = records[0]["gold"] if "response" in records[0] else right_choices(records[0])
    right = " or ".join(dict.fromkeys(_answer(comparison, each, text) for each in gold)) or "no answer"
    subject, index = own.key
    asked = f" {short(str(text['question']), SHORT)}" if "question" in text else ""
    told = "; ".join(f"{said} by {', '.join(runs)}" for said, runs in answers.items())
    runs = len(group.runs)
    by = f"all {runs}" if own.missed == runs else f"{own.missed} of {runs}"
    return f"{subject} {index}, missed by {by}.{asked} Right: {right}. Answered: {told}."


def _answer(comparison: Comparison, answer: Any, text: Mapping[str, Any]) -> str:
    """A choice by its letter or number, with its text where that was saved; or the words."""
    if not isinstance(answer, int):
        return f"“{short(str(answer), ANSWER)}”"
    choices = text.get("choices", [])
    said = f" “{short(str(choices[answer]), ANSWER)}”" if answer < len(choices) else ""
    return f"{place_name(comparison, answer)}{said}"


def lettered(comparison: Comparison) -> bool:
    """Whether the choices stood under letters."""
    benchmark = BENCHMARKS.get(comparison.group.task)
    return benchmark is not None and benchmark.letters


def place_name(comparison: Comparison, place: int) -> str:
    """A choice by its letter, or its number from 1 on."""
    return chr(ord("A") + place) if lettered(comparison) and place < 26 else f"choice {place + 1}"


def short(text: str, most: int) -> str:
    """On one line, with at most so many letters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def numbers(comparison: Comparison) -> list[str]:
    """The models in the heads of columns."""
    return [f"model {place}" for place in range(1, len(comparison.group.runs) + 1)]


def pair(first: int, second: int) -> str:
    """Two models by their numbers."""
    return f"{first + 1} & {second + 1}"


def interval(low: float, high: float) -> str:
    """In percent: 42.3-47.9."""
    return f"{100 * low:.1f}-{100 * high:.1f}"


def p_cell(p: float) -> str:
    """A p-value of a table."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def decimal(value: float) -> str:
    """Nothing where it cannot be said."""
    return "" if math.isnan(value) else f"{value:.2f}"


def percent_cell(share: float | None) -> str:
    """Nothing where it cannot be said."""
    return "" if share is None else f"{100 * share:.1f}"


def show(comparison: Comparison) -> None:
    """Print words, then tables, then the hardest questions; tables too wide for a terminal are cut into several."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000

    def paragraph(text: str, indent: str = "") -> None:
        console.print(Text(indent + text), soft_wrap=not console.is_terminal)

    console.print(Text(comparison.group.title, style="bold"))
    for line in (*words(comparison), *notes(comparison)):
        paragraph(line)
    for sheet in sheets(comparison):
        console.print()
        console.print(Text(sheet.title, style="bold"))
        for place, table in enumerate(fitted(sheet, console)):
            console.print(*([""] if place else []), table, sep="\n")
        if sheet.note:
            paragraph(sheet.note)
    if comparison.hardest:
        console.print()
        console.print(Text("Hardest questions", style="bold"))
        for place, line in enumerate(hard_lines(comparison), 1):
            paragraph(f"{place}. {line}")
        if not all(own.key in comparison.group.texts for own in comparison.hardest):
            paragraph(NO_TEXTS)
    console.print()


def fitted(sheet: Sheet, console: Console) -> list[Table]:
    """A table as one, or as several with as many of its columns as fit each; names are folded, numbers never."""
    columns = len(sheet.heads) - 1
    tables: list[Table] = []
    for each in range(columns, 0, -1):
        starts = range(1, columns + 1, each)
        tables = [_table(sheet, first, first + each, console.width // 2 + 2) for first in starts]
        wanted = [console.measure(table, options=console.options.update(width=10_000)).maximum for table in tables]
        if max(wanted) <= console.width:
            break
    return tables


def _table(sheet: Sheet, first: int, last: int, widest: int) -> Table:
    """The column of names, at most so wide, and some of the others."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column(sheet.heads[0], overflow="fold", max_width=widest)
    for head in sheet.heads[first:last]:
        table.add_column(head, justify="right", no_wrap=True)
    for name, *cells in sheet.rows:
        table.add_row(Text(name), *cells[first - 1 : last - 1])
    return table


def markdown(comparison: Comparison) -> str:
    """Words, tables and the hardest questions for GitHub."""
    blocks = [f"# {comparison.group.title}", *map(escaped, (*words(comparison), *notes(comparison)))]
    for sheet in sheets(comparison):
        heads = [head.replace("\n", " ") for head in sheet.heads]
        blocks += [f"## {sheet.title}", "\n".join(table_lines(heads, sheet.rows, 1))]
        blocks += [sheet.note] if sheet.note else []
    if comparison.hardest:
        lines = [f"{place}. {escaped(line)}" for place, line in enumerate(hard_lines(comparison), 1)]
        blocks += ["## Hardest questions", "\n".join(lines)]
        blocks += [] if all(own.key in comparison.group.texts for own in comparison.hardest) else [NO_TEXTS]
    return "\n\n".join(blocks)


def escaped(text: str) -> str:
    """Text that Markdown would read as something else."""
    return "".join(f"\\{letter}" if letter in "\\`*_<[#|$" else letter for letter in text)
