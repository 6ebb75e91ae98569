"""Judgments -> what they are worth, in sentences, and text tables for terminals and Markdown. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from engine.runtime.wording import plural
from evals.analysis.findings import MAX_NAMED, percent
from evals.analysis.judgments import MIN_QUESTIONS, SCALE, JudgeAnalysis, Mean, ScoreDifference
from evals.analysis.tables import TextTable, markdown_blocks, percent_cell, print_tables
from evals.analysis.verdicts import Agreement, PairResult
from evals.data.mt_bench import CATEGORIES
from evals.runs.judged_folder import JudgedFolder

# Limits beyond which scores are worth little.
MAX_UNSCORED = 0.2  # share of judgments without a score
MIN_DEVIATION = 0.5  # points
MIN_CLOSE = 0.8  # share of scores that a second pass repeats within one point
MAX_CHANGED = 0.3  # share of comparisons whose verdict changes with the order of the answers
INTERVALS = f"95 % intervals: bootstrap over questions; none for fewer than {MIN_QUESTIONS}, too few to tell."


def findings(analysis: JudgeAnalysis, cut: int = 0) -> list[str]:
    """Return questions, each followed by its answer. `cut`: see `cut_turns`."""
    lines = []
    if analysis.models:
        lines.append(f"What are the scores worth? {_worth(analysis, cut)}")
    if analysis.differences:
        lines.append(f"Which models differ? {_differences(analysis)}")
    if analysis.judge in {*(row.model for row in analysis.models), *(row.model for row in analysis.wins)}:
        lines.append(f"Does the judge prefer its own answers? {_preference(analysis)}")
    if analysis.pairs:
        lines.append(f"Does the order of two answers decide? {_position(analysis)}")
    return lines


def _worth(analysis: JudgeAnalysis, cut: int) -> str:
    judged, unscored = sum(row.judged for row in analysis.models), sum(row.unscored for row in analysis.models)
    if unscored == judged:
        return f"Nothing: none of {plural(judged, 'judgment')} has a score."
    reasons = []
    silent = [row for row in analysis.models if row.unscored > MAX_UNSCORED * row.judged]
    if unscored > MAX_UNSCORED * judged:
        reasons.append("many judgments have no score")
    elif silent:
        reasons.append(f"many judgments of {_and(row.model for row in silent)} have no score")
    if not analysis.deviation >= MIN_DEVIATION:  # also if it is NaN, of a single score
        reasons.append("the scores hardly differ")
    agreement = analysis.agreement
    if agreement.both and agreement.close_share < MIN_CLOSE:
        reasons.append("the judge does not repeat them")
    outside = sum(row.outside for row in analysis.models)
    if outside:
        reasons.append(f"{plural(outside, 'score')} {'is' if outside == 1 else 'are'} outside {SCALE[0]} to {SCALE[1]}")
    verdict = f"Little: {_and(reasons)}." if reasons else "Nothing in their numbers speaks against them."
    deviation = "" if math.isnan(analysis.deviation) else f"a standard deviation of {analysis.deviation:.2f} and "
    return (
        f"{verdict} Of {plural(judged, 'judgment')}, {unscored:,} ({percent(unscored / judged)}) have no score and are "
        f"left out of the means; the scores have {deviation}{plural(analysis.distinct, 'different value')}. "
        f"{_repeated(agreement)}{_cut(cut)}"
    )


def _cut(turns: int) -> str:
    return f" {plural(turns, 'judged turn')} {'was' if turns == 1 else 'were'} cut at the limit." if turns else ""


def _repeated(agreement: Agreement) -> str:
    if not agreement.both:
        return "There is no second pass to compare with."
    return (
        f"Two passes give the same score in {percent(agreement.same_share)} of {plural(agreement.both, 'case')}, and "
        f"one at most one point apart in {percent(agreement.close_share)}."
    )


def _differences(analysis: JudgeAnalysis) -> str:
    rows = [row for row in analysis.differences if interval(row.points)]
    few = len(analysis.differences) - len(rows)
    rest = f" {plural(few, 'pair')} with too few questions to tell." if rows and few else ""
    return (_clear(rows) if rows else "Unknown: too few questions to tell.") + rest


def _clear(rows: Sequence[ScoreDifference]) -> str:
    unclear = sorted((row for row in rows if not row.is_clear), key=lambda row: abs(row.points.mean))
    if not unclear:
        which = f"All {len(rows)} pairs" if len(rows) > 1 else _difference(rows[0])
        return f"{which}: no 95 % interval of a difference includes 0."
    named = "; ".join(_difference(row) for row in unclear[:MAX_NAMED])
    rest = f"; and {len(unclear) - MAX_NAMED} more" if len(unclear) > MAX_NAMED else ""
    clear = f"{len(rows) - len(unclear)} of {len(rows)} pairs" if len(unclear) < len(rows) else "None for certain"
    return f"{clear}. The 95 % interval of the difference includes 0 for {named}{rest}."


def _difference(row: ScoreDifference) -> str:
    return f"{row.first} and {row.second} ({row.points.mean:+.2f}; {interval(row.points, '+.2f')})"


def _preference(analysis: JudgeAnalysis) -> str:
    judge, preference = analysis.judge, analysis.preference
    means = {row.model: row.overall.mean for row in analysis.models if row.overall.count}
    others = [mean for name, mean in means.items() if name != judge]
    adjusted = [row.adjusted for row in analysis.wins if row.model == judge]
    facts = []
    if judge in means and others:
        gap = means[judge] - sum(others) / len(others)
        facts.append(f"gives them {gap:+.2f} points against the mean of the other models")
    if adjusted:
        facts.append(f"lets them win {percent(adjusted[0])} of their comparisons, a tie as half a win")
    told = f"It judges answers of its own{''.join(f', and {fact}' for fact in facts)}."
    if preference is None:
        return f"Unknown. {told} Only another judge of the same answers can tell whether they are better."
    verdict = "Yes." if preference.low > 0 else "No, less than other judges do." if preference.high < 0 else "Unclear."
    few = ", too few questions to tell"
    limits = f" (95 % interval {interval(preference, '+.2f')})" if interval(preference) else few
    return f"{verdict} {told} That is {preference.mean:+.2f} points against other judges of the same answers{limits}."


def _position(analysis: JudgeAnalysis) -> str:
    names = ("total", "changed", "failed", "decided", "first_place")
    total, changed, failed, decided, first = (sum(getattr(row, name) for row in analysis.pairs) for name in names)
    if not total:
        return f"Unknown: none of {plural(failed, 'comparison')} has a verdict in both orders."
    often = "Often: the verdicts are worth little." if changed > MAX_CHANGED * total else "Sometimes."
    verdict = often if changed else "No."
    sides = left_out = ""
    if decided:
        sides = f" Of the verdicts that are not ties, {percent(first / decided)} are for the answer shown first."
    if failed:
        left_out = f" {plural(failed, 'comparison')} without a verdict in both orders left out."
    return (
        f"{verdict} The verdict changes with the order in {percent(changed / total)} of "
        f"{plural(total, 'comparison')}, which count as ties.{sides}{left_out}"
    )


def text_tables(analysis: JudgeAnalysis) -> list[TextTable]:
    """Return all tables of a judge that have rows."""
    makers: tuple[Callable[[JudgeAnalysis], TextTable], ...]
    makers = (scores, scores_by_category, differences, wins, pairs)
    return [table for table in (make(analysis) for make in makers) if table.rows]


def scores(analysis: JudgeAnalysis) -> TextTable:
    """Mean scores of each model by turn and over both, with what they are worth."""
    has_passes = any(row.agreement.both for row in analysis.models)
    rows = [
        [
            row.model,
            *(_cell(mean) for mean in (row.turns[1], row.turns[2], row.overall)),
            f"{row.judged:,}",
            f"{row.unscored:,} ({percent_cell(row.unscored / row.judged)} %)",
            number(row.deviation),
            f"{row.distinct:,}",
            *([share(row.agreement.same_share), share(row.agreement.close_share)] if has_passes else []),
        ]
        for row in analysis.models
    ]
    heads = ["model", "turn 1", "turn 2", "all", "judgments", "without\na score", "standard\ndeviation"]
    heads += ["different\nscores", *(["same in two\npasses, %", "within one\npoint, %"] if has_passes else [])]
    note = f"Means without judgments that have no score. {INTERVALS}"
    return TextTable(f"Scores by {analysis.judge}", heads, rows, note)


def scores_by_category(analysis: JudgeAnalysis) -> TextTable:
    """Mean scores of each model by category."""
    names = category_names(analysis)
    rows = [
        [row.model, *(number(row.categories[name].mean) if name in row.categories else "" for name in names)]
        for row in analysis.models
    ]
    return TextTable(f"Scores by {analysis.judge} by category", ["model", *names], rows if names else [])


def differences(analysis: JudgeAnalysis) -> TextTable:
    """Differences between every two models on the same questions."""
    rows = [
        [_pair(row), f"{row.points.mean:+.2f}", interval(row.points, "+.2f"), f"{row.points.count:,}"]
        for row in analysis.differences
    ]
    note = f"Over the judgments in which both have a score. {INTERVALS}"
    return TextTable("Differences", ["models", "points", "95 %\ninterval", "judgments"], rows, note)


def wins(analysis: JudgeAnalysis) -> TextTable:
    """Comparisons that each model won, lost and tied."""
    rows = [
        [
            row.model,
            *(f"{count:,}" for count in (row.wins, row.losses, row.ties)),
            *map(share, (row.win_rate, row.loss_rate, row.adjusted)),
        ]
        for row in analysis.wins
    ]
    heads = ["model", "wins", "losses", "ties", "win\nrate, %", "loss\nrate, %", "adjusted\nwin rate, %"]
    note = "A verdict that changes with the order of the answers is a tie. Adjusted: a tie is half a win."
    return TextTable(f"Comparisons by {analysis.judge}", heads, rows, note)


def pairs(analysis: JudgeAnalysis) -> TextTable:
    """Comparisons of every two models, with the effect of the order."""
    rows = [
        [
            _pair(row),
            *(f"{count:,}" for count in (row.wins, row.ties, row.losses, row.failed)),
            share(row.changed_share),
            share(row.first_place_share),
        ]
        for row in analysis.pairs
    ]
    heads = ["models", "1st\nwins", "ties", "2nd\nwins", "no\nverdict"]
    heads += ["changed with\nthe order, %", "for the answer\nshown first, %"]
    note = "The last column is over the verdicts that are not ties; 50 % is no position bias."
    if (verdicts := analysis.verdicts).both:
        note += f" Two passes agree in {percent(verdicts.same_share)} of {plural(verdicts.both, 'verdict')}."
    return TextTable("Pairs of models", heads, rows, note)


def category_names(analysis: JudgeAnalysis) -> list[str]:
    """Return the categories with scores: MT-Bench's in their order, then others."""
    found = {name for row in analysis.models for name in row.categories}
    return [*(name for name in CATEGORIES if name in found), *sorted(found.difference(CATEGORIES))]


def print_judged(folder: JudgedFolder, analyses: Sequence[JudgeAnalysis]) -> None:
    """Print findings and tables of some of the folder's judges."""
    for one in analyses:
        print_tables(*_blocks(folder, one))


def markdown(folder: JudgedFolder, analyses: Sequence[JudgeAnalysis]) -> str:
    """Return findings and tables of some of the folder's judges as Markdown."""
    return "\n\n".join(block for one in analyses for block in markdown_blocks(*_blocks(folder, one)))


def _blocks(folder: JudgedFolder, one: JudgeAnalysis) -> tuple[str, list[str], list[TextTable]]:
    lines = [measured(folder, one), *findings(one, cut_turns(folder, one))]
    return f"{folder.title}, judged by {one.judge}", lines, text_tables(one)


def measured(folder: JudgedFolder, analysis: JudgeAnalysis) -> str:
    """Return how many of the folder's questions were judged, and their categories: "2 of 80 questions (math)"."""
    judged = {question for question, _, _ in _judged(folder, analysis)}
    counts = Counter(folder.categories[number] for number in judged if number in folder.questions)
    names = [*(name for name in CATEGORIES if name in counts), *sorted(counts.keys() - set(CATEGORIES))]
    total = max(len(folder.questions), len(judged))
    asked = f"{len(judged):,} of {plural(total, 'question')}" if folder.questions else plural(total, "question")
    return f"{asked} ({', '.join(names)})" if names else asked


def cut_turns(folder: JudgedFolder, analysis: JudgeAnalysis) -> int:
    """Return how many of the judged turns ended at the limit of their length, as far as the answers tell."""
    ends = [
        folder.answers[model][question].usage[turn - 1 : turn]
        for question, model, turn in _judged(folder, analysis)
        if question in folder.answers.get(model, {})
    ]
    return sum(usage[0].get("finish_reason") == "length" for usage in ends if usage)


def _judged(folder: JudgedFolder, analysis: JudgeAnalysis) -> set[tuple[int, str, int]]:
    """Question, model and turn of all judgments of a judge's first pass."""
    files = [files for files in folder.judges if files.judge == analysis.judge]
    single = {row.key for each in files for rows in each.single[:1] for row in rows}
    pair = [row for each in files for rows in each.pair[:1] for row in rows]
    return single | {(row.question_id, model, row.turn) for row in pair for model in row.models}


def number(value: float) -> str:
    """Format a score with two decimals; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.2f}"


def share(value: float) -> str:
    """Format a fraction in percent; empty for NaN."""
    return "" if math.isnan(value) else percent_cell(value)


def interval(mean: Mean, template: str = ".1f") -> str:
    """Format the interval of a mean; empty for NaN."""
    return "" if math.isnan(mean.low) else f"{mean.low:{template}} to {mean.high:{template}}"


def _cell(mean: Mean) -> str:
    limits = interval(mean).replace(" to ", "-")
    return f"{number(mean.mean)} ({limits})" if limits else number(mean.mean)


def _pair(row: ScoreDifference | PairResult) -> str:
    return f"{row.first} - {row.second}"


def _and(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
