"""A comparison of runs -> text tables, for terminals of any width and for Markdown. Models have numbers in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.cli.parser import printable
from engine.runtime.wording import plural
from evals.analysis.findings import expected_count, findings, notes
from evals.analysis.statistics import holm_correction
from evals.data.catalogue import BENCHMARKS
from evals.runs.measurements import markdown_table
from evals.runs.run_file import correct_choices

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from evals.analysis.comparison import Comparison
    from evals.analysis.patterns import HardQuestion, Rate

QUESTION_LENGTH = 200  # characters of a question that are shown
ANSWER_LENGTH = 60  # characters of an answer
NO_TEXTS = "The texts of the questions were not saved; score with --save-question-data to see them here."


@dataclass(frozen=True)
class TextTable:
    """A table whose first column holds names and whose other columns hold numbers. Heads may contain line breaks."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""


def text_tables(comparison: Comparison) -> list[TextTable]:
    """Return all tables of a comparison that have rows."""
    makers = (models, accuracies, differences, misses, overlaps, choice_biases, calibrations)
    return [table for table in (make(comparison) for make in makers) if table.rows]


def models(comparison: Comparison) -> TextTable:
    """The models with their numbers, accuracies and misses."""
    rows = [
        [f"{number} {run.label}", f"{100 * rate.mean:.2f}", interval(rate.low, rate.high), f"{rate.n - rate.right:,}"]
        for number, (run, rate) in enumerate(zip(comparison.group.runs, comparison.overall, strict=True), 1)
    ]
    questions = plural(len(comparison.group.keys), "question")
    return TextTable(f"Models, on {questions}", ["model", "accuracy\n%", "95 %\ninterval", "misses"], rows)


def accuracies(comparison: Comparison) -> TextTable:
    """Accuracies by subject, with Wilson's intervals."""

    def cell(rate: Rate) -> str:
        return f"{100 * rate.mean:.1f} ({100 * rate.low:.0f}-{100 * rate.high:.0f})"

    rows = [
        [f"{row.subject} ({row.rates[0].n:,})", *map(cell, row.rates), p_cell(p)]
        for row, p in zip(comparison.subjects, comparison.corrected, strict=True)
    ]
    if len(rows) > 1:
        rows.append([f"overall ({len(comparison.group.keys):,})", *map(cell, comparison.overall), ""])
    test = "McNemar's test" if len(comparison.group.runs) == 2 else "Cochran's Q test"
    corrected = ", corrected by Holm" if len(rows) > 1 else ""
    note = f"In percent, with 95 % intervals (Wilson). p: whether the models differ there ({test}{corrected})."
    heads = ["subject (questions)", *(f"model {number}" for number in range(1, len(comparison.group.runs) + 1)), "p"]
    return TextTable("Accuracy by subject", heads, rows, note)


def differences(comparison: Comparison) -> TextTable:
    """Differences between every two models on the same questions."""
    rows = [
        [
            pair(row.first, row.second),
            f"{row.only_first:,}",
            f"{row.only_second:,}",
            f"{100 * row.difference:+.2f}",
            f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
            p_cell(p),
        ]
        for row, p in zip(comparison.paired, holm_correction([row.p for row in comparison.paired]), strict=True)
    ]
    corrected = ", corrected by Holm" if len(rows) > 1 else ""
    heads = ["models", "only 1st\nright", "only 2nd\nright", "difference,\npoints", "95 %\ninterval", "p"]
    return TextTable("Differences", heads, rows, f"First minus second. p: McNemar's test{corrected}.")


def misses(comparison: Comparison) -> TextTable:
    """Numbers of questions that no, one, … all models miss."""
    counts, runs = comparison.misses, len(comparison.group.runs)
    names = ["none", *map(str, range(1, runs)), f"all {runs}"]
    columns = zip(names, counts.observed, counts.expected, counts.low, counts.high, strict=True)
    rows = [
        [name, f"{observed:,}", expected_count(expected), f"{low:,.0f} to {high:,.0f}"]
        for name, observed, expected, low, high in columns
    ]
    heads = ["missed by", "questions", "if\nindependent", "in 95 % of\npermutations"]
    within = f"; within each subject: {p_cell(counts.p_within)}" if len(comparison.subjects) > 1 else ""
    note = f"Permutation test of how unevenly mistakes are spread over the questions: {p_cell(counts.p)}{within}."
    return TextTable("Questions by how many models miss them", heads, rows, note)


def overlaps(comparison: Comparison) -> TextTable:
    """Overlap of the mistakes of every two models."""
    has_choices = comparison.group.has_choices
    rows = [
        [
            pair(row.first, row.second),
            f"{row.both_wrong:,}",
            decimal(row.jaccard),
            decimal(row.expected_jaccard),
            decimal(row.kappa),
            *([percent_cell(row.same_choice), percent_cell(row.expected_same)] if has_choices else []),
        ]
        for row in comparison.overlaps
    ]
    heads = ["models", "both\nmiss", "Jaccard", "by\nchance", "kappa"]
    heads += ["same wrong\nchoice, %", "by\nchance"] if has_choices else []
    note = (
        "Jaccard: both miss, as a fraction of either misses. kappa: Cohen's, for right or wrong; 0 is chance, 1 full "
        "agreement."
    )
    return TextTable("Mistakes in common", heads, rows, note)


def choice_biases(comparison: Comparison) -> TextTable:
    """How often each choice is chosen, and how often it is right."""
    biases = comparison.choice_bias
    if not biases:
        return TextTable("", [], [])
    rows = [["right", *(f"{100 * share:.1f}" for share in biases[0].right), ""]]
    rows += [[str(row.run + 1), *(f"{100 * share:.1f}" for share in row.chosen), p_cell(row.p)] for row in biases]
    heads = [choice_name(comparison, position) for position in range(len(biases[0].right))]
    note = "p: whether a model chooses each as often as it is right (Stuart-Maxwell test)."
    title = f"{'Letters' if has_letters(comparison) else 'Choices'} chosen, %"
    return TextTable(title, ["model", *heads, "p"], rows, note)


def calibrations(comparison: Comparison) -> TextTable:
    """Confidence and accuracy of each model."""
    rows = [
        [str(row.run + 1), f"{100 * row.accuracy:.1f}", f"{100 * row.confidence:.1f}", f"{100 * row.ece:.1f}"]
        for row in comparison.calibration
    ]
    note = "Confidence: mean probability of the chosen answer among the choices. ECE: expected calibration error."
    return TextTable("Calibration", ["model", "accuracy\n%", "confidence\n%", "ECE\npoints"], rows, note)


def hardest_lines(comparison: Comparison) -> list[str]:
    """Describe the hardest questions, one per line: text (if saved), correct answer, answers of the models."""
    return [_hardest_line(comparison, question) for question in comparison.hardest]


def _hardest_line(comparison: Comparison, question: HardQuestion) -> str:
    group = comparison.group
    text = group.texts.get(question.key, {})
    records = [run.records[question.key] for run in group.runs]
    models_by_answer: dict[str, list[str]] = {}
    for number, record in enumerate(records, 1):
        answer = _answer(comparison, record["prediction"], text)
        label = f"{answer} (right)" if record["correct"] else answer
        models_by_answer.setdefault(label, []).append(str(number))
    gold = records[0]["gold"] if "response" in records[0] else correct_choices(records[0])
    right = " or ".join(dict.fromkeys(_answer(comparison, answer, text) for answer in gold)) or "no answer"
    subject, index = question.key
    excerpt = f" {shorten(str(text['question']), QUESTION_LENGTH)}" if "question" in text else ""
    answers = "; ".join(f"{answer} by {', '.join(numbers)}" for answer, numbers in models_by_answer.items())
    runs = len(group.runs)
    by = f"all {runs}" if question.missed == runs else f"{question.missed} of {runs}"
    return f"{subject} {index}, missed by {by}.{excerpt} Right: {right}. Answered: {answers}."


def _answer(comparison: Comparison, answer: Any, text: Mapping[str, Any]) -> str:
    """Return a choice's name and its text if saved, or a generated answer in quotes."""
    if not isinstance(answer, int):
        return f"“{shorten(str(answer), ANSWER_LENGTH)}”"
    choices = text.get("choices", [])
    choice_text = f" “{shorten(str(choices[answer]), ANSWER_LENGTH)}”" if answer < len(choices) else ""
    return f"{choice_name(comparison, answer)}{choice_text}"


def has_letters(comparison: Comparison) -> bool:
    """Return whether the prompts show the choices with letters."""
    benchmark = BENCHMARKS.get(comparison.group.task)
    return benchmark is not None and benchmark.letters


def choice_name(comparison: Comparison, position: int) -> str:
    """Return a choice's letter, or "choice 1" and so on."""
    return chr(ord("A") + position) if has_letters(comparison) and position < 26 else f"choice {position + 1}"


def shorten(text: str, length: int) -> str:
    """Return a text on one line, cut to at most `length` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def pair(first: int, second: int) -> str:
    """Return two models by their numbers, such as "1 & 2"."""
    return f"{first + 1} & {second + 1}"


def interval(low: float, high: float) -> str:
    """Format an interval in percent, such as "42.3-47.9"."""
    return f"{100 * low:.1f}-{100 * high:.1f}"


def p_cell(p: float) -> str:
    """Format a p-value for a table."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def decimal(value: float) -> str:
    """Format a number with two decimals; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.2f}"


def percent_cell(share: float | None) -> str:
    """Format a fraction in percent; empty for None."""
    return "" if share is None else f"{100 * share:.1f}"


def print_comparison(comparison: Comparison) -> None:
    """Print findings, tables and the hardest questions. Tables wider than the terminal are split."""
    hardest = [f"{number}. {line}" for number, line in enumerate(hardest_lines(comparison), 1)]
    hardest += [] if _has_all_texts(comparison) else [NO_TEXTS]
    end = ("Hardest questions", hardest) if comparison.hardest else None
    lines = (*findings(comparison), *notes(comparison))
    print_tables(comparison.group.title, lines, text_tables(comparison), end)


def print_tables(
    title: str, lines: Sequence[str], tables: Sequence[TextTable], end: tuple[str, Sequence[str]] | None = None
) -> None:
    """Print a title, lines and tables, and `end`, a heading with lines. Tables wider than the terminal are split."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # one line per row, for other programs

    def paragraph(text: str) -> None:
        console.print(Text(text), soft_wrap=not console.is_terminal)

    console.print(Text(title, style="bold"))
    for line in lines:
        paragraph(line)
    for table in tables:
        console.print()
        console.print(Text(table.title, style="bold"))
        for number, part in enumerate(split_to_width(table, console)):
            console.print(*([""] if number else []), part, sep="\n")
        if table.note:
            paragraph(table.note)
    if end is not None:
        console.print()
        console.print(Text(end[0], style="bold"))
        for line in end[1]:
            paragraph(line)
    console.print()


def split_to_width(table: TextTable, console: Console) -> list[Table]:
    """Return the table as one rich table, or as several with as many columns each as fit the console.

    Names may wrap, numbers never do.
    """
    columns = len(table.heads) - 1
    parts: list[Table] = []
    for size in range(columns, 0, -1):
        starts = range(1, columns + 1, size)
        parts = [_rich_table(table, first, first + size, console.width // 2 + 2) for first in starts]
        widths = [console.measure(part, options=console.options.update(width=10_000)).maximum for part in parts]
        if max(widths) <= console.width:
            break
    return parts


def _rich_table(table: TextTable, first: int, last: int, name_width: int) -> Table:
    """Return the column of names, at most `name_width` wide, and the columns [first, last)."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    result = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    result.add_column(table.heads[0], overflow="fold", max_width=name_width)
    for head in table.heads[first:last]:
        result.add_column(Text(head), justify="right", no_wrap=True)
    for name, *cells in table.rows:
        result.add_row(Text(name), *cells[first - 1 : last - 1])
    return result


def markdown(comparison: Comparison) -> str:
    """Return findings, tables and the hardest questions as Markdown."""
    blocks = markdown_blocks(
        comparison.group.title, (*findings(comparison), *notes(comparison)), text_tables(comparison)
    )
    if comparison.hardest:
        numbered = [f"{n}. {escape_markdown(line)}" for n, line in enumerate(hardest_lines(comparison), 1)]
        blocks += ["## Hardest questions", "\n".join(numbered)]
        blocks += [] if _has_all_texts(comparison) else [NO_TEXTS]
    return "\n\n".join(blocks)


def markdown_blocks(title: str, lines: Sequence[str], tables: Sequence[TextTable]) -> list[str]:
    """Return a title, lines and tables as blocks of Markdown."""
    blocks = [f"# {title}", *map(escape_markdown, lines)]
    for table in tables:
        heads = [head.replace("\n", " ") for head in table.heads]
        blocks += [f"## {table.title}", "\n".join(markdown_table(heads, table.rows, 1))]
        blocks += [table.note] if table.note else []
    return blocks


def _has_all_texts(comparison: Comparison) -> bool:
    return all(question.key in comparison.group.texts for question in comparison.hardest)


def escape_markdown(text: str) -> str:
    """Escape the characters that Markdown would interpret."""
    return "".join(f"\\{letter}" if letter in "\\`*_<[#|$" else letter for letter in text)
