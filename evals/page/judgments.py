"""Judged answers in the report: tables of a judge, and the questions with all answers and judgments. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from engine.runtime.wording import plural
from evals.analysis.findings import percent
from evals.analysis.judgment_tables import INTERVALS, category_names, interval, number, share
from evals.analysis.judgments import SCALE, JudgeAnalysis, Mean, ScoreDifference
from evals.analysis.verdicts import PairResult
from evals.page.questions import Control, link
from evals.page.tables import Cell, Table
from evals.runs.judged import ERROR, NO_SCORE, Answer
from evals.runs.judged_folder import JudgedFolder

NO_QUESTIONS = (
    "The questions were not saved beside the answers, in question.jsonl: they are shown by number, without categories, "
    "and with the prompts of the judges."
)
RANGES = [("none", "no score"), ("low", "below 4"), ("middle", "4 to below 7"), ("high", "7 or more")]


def score_tables(analysis: JudgeAnalysis, slug: str, prefix: str) -> list[Table]:
    """Return the tables of a judge's scores that have rows. `prefix`: start of their names."""
    tables = [_scores(analysis, prefix), _categories(analysis, slug, prefix), _differences(analysis, prefix)]
    return [table for table in tables if table.rows]


def comparison_tables(analysis: JudgeAnalysis, prefix: str) -> list[Table]:
    """Return the tables of a judge's comparisons that have rows."""
    return [table for table in (_wins(analysis, prefix), _pairs(analysis, prefix)) if table.rows]


def _scores(analysis: JudgeAnalysis, prefix: str) -> Table:
    has_passes = any(row.agreement.both for row in analysis.models)
    rows = [
        [
            Cell(row.model),
            *(_mean(mean) for mean in (row.turns[1], row.turns[2], row.overall)),
            Cell(f"{row.judged:,}", value=row.judged),
            Cell(f"{row.unscored:,}", percent(row.unscored / row.judged), value=row.unscored),
            _cell(row.deviation, number(row.deviation)),
            Cell(f"{row.distinct:,}", value=row.distinct),
            *([_share(row.agreement.same_share), _share(row.agreement.close_share)] if has_passes else []),
        ]
        for row in analysis.models
    ]
    heads = ["model", "turn 1", "turn 2", "all", "judgments", "without a score", "standard deviation"]
    heads += ["different scores", *(["same in two passes, %", "within one point, %"] if has_passes else [])]
    note = f"Without judgments that have no score. {INTERVALS}"
    return Table(f"{prefix}-means", "Mean scores.", note, heads, rows)


def _categories(analysis: JudgeAnalysis, slug: str, prefix: str) -> Table:
    rows = [
        [
            Cell(name, link=link(slug, subject=name)),
            *(_mean(row.categories[name]) if name in row.categories else Cell("") for row in analysis.models),
        ]
        for name in category_names(analysis)
    ]
    totals = [[Cell("all"), *(_mean(row.overall) for row in analysis.models)]]
    heads = ["category", *(row.model for row in analysis.models)]
    return Table(f"{prefix}-categories", "Mean scores by category.", INTERVALS, heads, rows, totals)


def _differences(analysis: JudgeAnalysis, prefix: str) -> Table:
    rows = [
        [
            *_models(row),
            Cell(f"{row.points.mean:+.2f}", interval(row.points, "+.2f"), value=row.points.mean),
            Cell(f"{row.points.count:,}", value=row.points.count),
        ]
        for row in analysis.differences
    ]
    note = f"First minus second in points, over the judgments in which both have a score. {INTERVALS}"
    heads = ["first", "second", "difference", "judgments"]
    return Table(f"{prefix}-differences", "Differences on the same questions.", note, heads, rows, left=2)


def _wins(analysis: JudgeAnalysis, prefix: str) -> Table:
    rows = [
        [
            Cell(row.model),
            *(Cell(f"{count:,}", value=count) for count in (row.wins, row.losses, row.ties)),
            *map(_share, (row.win_rate, row.loss_rate, row.adjusted)),
        ]
        for row in analysis.wins
    ]
    heads = ["model", "wins", "losses", "ties", "win rate, %", "loss rate, %", "adjusted win rate, %"]
    note = "A verdict that changes with the order of the answers is a tie. Adjusted: a tie is half a win."
    return Table(f"{prefix}-wins", "Comparisons won and lost.", note, heads, rows)


def _pairs(analysis: JudgeAnalysis, prefix: str) -> Table:
    rows = [
        [
            *_models(row),
            *(Cell(f"{count:,}", value=count) for count in (row.wins, row.ties, row.losses, row.failed)),
            _share(row.changed_share),
            _share(row.first_place_share),
        ]
        for row in analysis.pairs
    ]
    note = "The last column is over the verdicts that are not ties; 50 % is no position bias."
    if (verdicts := analysis.verdicts).both:
        note += f" Two passes agree in {percent(verdicts.same_share)} of {plural(verdicts.both, 'verdict')}."
    heads = ["first", "second", "first wins", "ties", "second wins", "no verdict"]
    heads += ["changed with the order, %", "for the answer shown first, %"]
    return Table(f"{prefix}-pairs", "Comparisons of every two models.", note, heads, rows, left=2)


def _models(row: ScoreDifference | PairResult) -> list[Cell]:
    return [Cell(row.first), Cell(row.second)]


def _mean(mean: Mean) -> Cell:
    bar = None if math.isnan(mean.mean) else min(1.0, max(0.0, mean.mean / SCALE[1]))
    return _cell(mean.mean, number(mean.mean), interval(mean))._replace(share=bar)


def _share(value: float) -> Cell:
    return _cell(value, share(value))


def _cell(value: float, text: str, detail: str = "") -> Cell:
    return Cell("") if math.isnan(value) else Cell(text, detail, value=value)


def judged_controls(folder: JudgedFolder) -> list[Control]:
    """Return the controls to filter and sort questions, besides search, category and single models."""
    filters = [("unscored", "a judgment has no score"), ("failed", "an answer is missing or failed")]
    if any(question.references for question in folder.questions.values()):
        filters.append(("reference", "with a reference answer"))
    if any(len(judge.single) > 1 for judge in folder.judges):
        filters.append(("passes", "two passes differ by more than one point"))
    if any(judge.pair for judge in folder.judges):
        filters.append(("order", "a verdict changed with the order"))
    orders = [("lowest", "lowest scores first"), ("highest", "highest scores first")]
    orders += [("gap", "largest difference of two models")] if len(folder.models) > 1 else []
    orders += [("drop", "largest drop from turn 1 to turn 2")]
    return [
        Control("filter", "Show", [("", "all"), *filters]),
        Control("sort", "Order", [("", "as in the data"), *orders]),
    ]


def judged_model_controls(folder: JudgedFolder) -> list[Control]:
    """Return a control for each model: show the questions on which its mean score is in a range."""
    options = [("", "any score"), *RANGES]
    return [Control(f"model{index}", model, options) for index, model in enumerate(folder.models, 1)]


def judged_columns(folder: JudgedFolder) -> dict[str, Any]:
    """Return all questions of a folder as columns: texts, each model's answers and their judgments.

    A judgment is [turn, judge, score, text] and a comparison [turn, judge, model, other model, winner, winner in the
    other order, text, other text]; both are followed by their prompts if the question or an answer is not known.
    `judge` and models are indices into `judges` and `models`; scores and texts that are missing are None.
    """
    numbers, models = folder.question_ids, folder.models
    questions = [folder.questions.get(question) for question in numbers]
    subjects = subjects_of(folder)
    labels: list[tuple[str, int]] = []  # of each pass of each judge
    judgments: dict[tuple[str, int], list[list[Any]]] = {}
    compared: dict[int, list[list[Any]]] = {}
    for judge in folder.judges:
        for index, (rows, pairs) in enumerate(zip_longest(judge.single, judge.pair)):
            for row in rows or ():
                score = None if row.score == NO_SCORE else row.score
                entry = [row.turn, len(labels), score, row.judgment]
                entry += [] if _is_known(folder, row.question_id, row.model) else [row.user_prompt]
                judgments.setdefault((row.model, row.question_id), []).append(entry)
            for pair in pairs or ():
                entry = [pair.turn, len(labels), *map(models.index, pair.models), *pair.winners, *pair.judgments]
                is_known = all(_is_known(folder, pair.question_id, model) for model in pair.models)
                compared.setdefault(pair.question_id, []).append(entry + ([] if is_known else list(pair.user_prompts)))
            labels.append((judge.judge, index + 1))
    return {
        "kind": "judged",
        "models": models,
        "judges": labels,
        "subjects": subjects,
        "subject": [subjects.index(question.category) if question else None for question in questions],
        "index": numbers,
        "question": [list(question.turns) if question else None for question in questions],
        "reference": [list(question.references) if question else None for question in questions],
        "expected": [list(folder.expected.get(number, ())) for number in numbers],
        "pairs": [compared.get(question, []) for question in numbers],
        "runs": [
            {
                "answers": [_answer(folder.answers.get(model, {}).get(question)) for question in numbers],
                "judgments": [judgments.get((model, question), []) for question in numbers],
            }
            for model in models
        ],
    }


def subjects_of(folder: JudgedFolder) -> list[str]:
    """Return the categories of the folder's questions in the order of the questions."""
    known = [folder.questions[number] for number in folder.question_ids if number in folder.questions]
    return list(dict.fromkeys(question.category for question in known))


def _is_known(folder: JudgedFolder, question: int, model: str) -> bool:
    return question in folder.questions and question in folder.answers.get(model, {})


def _answer(answer: Answer | None) -> list[list[str]] | None:
    """Return the text of each turn with a note about it, such as that it was cut off."""
    if answer is None:
        return None
    usage = [*answer.usage, *[{}] * len(answer.turns)]
    return [[text, _note(text, own)] for text, own in zip(answer.turns, usage, strict=False)]


def _note(text: str, usage: Mapping[str, Any]) -> str:
    """Say what the saved usage of a turn tells about its answer."""
    if text == ERROR:
        return f"no answer: {usage['error']}" if "error" in usage else "no answer"
    tokens, dropped = usage.get("completion_tokens"), usage.get("dropped_turns")
    notes = [plural(tokens, "token")] if isinstance(tokens, int) else []
    notes += ["cut off at the token limit"] if usage.get("finish_reason") == "length" else []
    notes += ["stopped, as it repeats itself"] if usage.get("finish_reason") == "loop" else []
    notes += ["without the first turn, which did not fit"] if dropped else []
    return ", ".join(notes)
