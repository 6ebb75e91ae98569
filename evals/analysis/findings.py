"""A comparison of runs -> findings: sentences with numbers, valid for few questions and extreme results too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.runtime.wording import plural
from evals.data.catalogue import BENCHMARKS

if TYPE_CHECKING:
    from evals.analysis.comparison import Comparison
    from evals.analysis.patterns import CommonMisses, Overlap, Rate

LEVEL = 0.05  # significance level
MAX_NAMED = 5  # subjects to name; more are only counted
FEW_QUESTIONS = 100  # below so many, a result that is not significant says little


def findings(comparison: Comparison) -> list[str]:
    """Return three questions, each followed by its answer; none for a single run."""
    if len(comparison.group.runs) == 1:
        return []
    return [
        f"Are the mistakes random? {_randomness(comparison)}",
        f"Do the models miss the same questions? {_similarity(comparison)}",
        f"Which subjects separate the models? {_separating_subjects(comparison)}",
    ]


def notes(comparison: Comparison) -> list[str]:
    """Return a line for each run that answered questions which are left out because other runs lack them."""
    group = comparison.group
    benchmark, subjects = BENCHMARKS.get(group.task), set(group.subjects)
    pools = benchmark is None or benchmark.pools
    extras = [sum(pools or name in subjects for name, _ in run.records) - len(group.keys) for run in group.runs]
    return [
        f"{run.label}: {plural(extra, 'question')} left out, which not all models answered."
        for run, extra in zip(group.runs, extras, strict=True)
        if extra
    ]


def _randomness(comparison: Comparison) -> str:
    if reason := _why_undetermined(comparison):
        return reason
    misses, questions = comparison.misses, len(comparison.group.keys)
    numbers = (
        f"{_all_models(comparison)} miss {misses.observed[-1]:,} of {questions:,} questions, and "
        f"{misses.observed[0]:,} are missed by none. If the mistakes were independent, these numbers would be "
        f"{expected_count(misses.expected[-1])} ({_range(misses, -1)} in 95 % of permutations) and "
        f"{expected_count(misses.expected[0])} ({_range(misses, 0)})."
    )
    test = f"(permutation test: {p_text(misses.p)})"
    if misses.p < LEVEL:
        which = "the same" if misses.excess > 0 else "different"
        return f"No. {numbers} The models miss {which} questions more often than by chance {test}.{_within(comparison)}"
    few = f"; {plural(questions, 'question')} say little" if questions < FEW_QUESTIONS else ""
    verdict = "Unclear." if misses.p_within >= LEVEL else "Not within subjects."
    return f"{verdict} {numbers} This may be chance {test}{few}.{_within(comparison)}"


def _within(comparison: Comparison) -> str:
    """Say what remains after accounting for hard and easy subjects."""
    misses, p = comparison.misses, p_text(comparison.misses.p_within)
    is_same = misses.p < LEVEL and misses.excess > 0
    if len(comparison.subjects) == 1:
        return ""
    if misses.p_within >= LEVEL:
        why = ": perhaps only some subjects are harder than others" if is_same else ""
        return f" Within subjects this is unclear ({p}){why}."
    if misses.excess_within <= 0:
        return f" Within subjects the models miss different questions more often than by chance ({p})."
    if is_same:
        return f" This also holds within subjects ({p}): individual questions are hard for several models."
    return f" But within subjects the models miss the same questions more often than by chance ({p})."


def _similarity(comparison: Comparison) -> str:
    if reason := _why_undetermined(comparison):
        return reason
    misses, labels = comparison.misses, _labels(comparison)
    if misses.p < LEVEL:
        verdict = "Yes, more often than by chance." if misses.excess > 0 else "No, less often than by chance."
    elif misses.p_within < LEVEL:
        verdict = f"Within subjects, {'more' if misses.excess_within > 0 else 'less'} often than by chance."
    else:
        verdict = "It is unclear whether they do so more often than by chance."

    def shares(overlap: Overlap) -> str:
        return f"both miss {percent(overlap.jaccard)} (by chance {percent(overlap.expected_jaccard)})"

    defined = [overlap for overlap in comparison.overlaps if not math.isnan(overlap.jaccard)]
    pairs = sorted(defined, key=lambda overlap: overlap.expected_jaccard - overlap.jaccard)
    most, least = pairs[0], pairs[-1]
    if most is least:
        numbers = f"Of the questions that {labels[most.first]} or {labels[most.second]} misses, {shares(most)}."
    else:
        numbers = (
            f"The most similar pair is {labels[most.first]} and {labels[most.second]}: of the questions that either "
            f"misses, {shares(most)}. The least similar pair is {labels[least.first]} and {labels[least.second]}: "
            f"{shares(least)}."
        )
    return " ".join([verdict, numbers, *_same_choices(comparison), *_identical_answers(comparison)])


def _same_choices(comparison: Comparison) -> list[str]:
    """Say how often two models that miss a question make the same wrong choice, over all pairs."""
    known = [
        (overlap.both_wrong, overlap.same_choice, overlap.expected_same)
        for overlap in comparison.overlaps
        if overlap.same_choice is not None and overlap.expected_same is not None
    ]
    if not known:
        return []
    total = sum(both for both, _, _ in known)
    same = sum(both * share for both, share, _ in known) / total
    expected = sum(both * share for both, _, share in known) / total
    benchmark = BENCHMARKS.get(comparison.group.task)
    positions = "letters" if benchmark is not None and benchmark.letters else "positions among the choices"
    return [
        f"When two models miss a question, they make the same wrong choice in {percent(same)} of the cases; "
        f"their preferences for {positions} alone would give {percent(expected)}."
    ]


def _identical_answers(comparison: Comparison) -> list[str]:
    labels = _labels(comparison)
    pairs = [f"{labels[first]} and {labels[second]}" for first, second in comparison.alike]
    if not pairs:
        return []
    return [f"Identical answers to every question: {'; '.join(pairs)}. Perhaps one model was scored twice."]


def _separating_subjects(comparison: Comparison) -> str:
    rows, corrected, labels = comparison.subjects, comparison.corrected, _labels(comparison)
    test = "McNemar's test" if len(labels) == 2 else "Cochran's Q test"

    def extremes(rates: Sequence[Rate]) -> str:
        means = [rate.mean for rate in rates]
        low, high = (pick(range(len(means)), key=means.__getitem__) for pick in (min, max))
        return f"from {percent(means[low])} ({labels[low]}) to {percent(means[high])} ({labels[high]})"

    if all(row.spread == 0 for row in rows):
        where = f"the only subject, {readable(rows[0].subject)}" if len(rows) == 1 else f"all {len(rows)} subjects"
        return f"None: all models are equally accurate in {where}."
    if len(rows) == 1:
        subject = f"the only subject, {readable(rows[0].subject)}, does"
        verdict = f"T{subject[1:]}" if rows[0].p < LEVEL else f"It is unclear whether {subject}"
        return f"{verdict}: {extremes(rows[0].rates)}; {test}: {p_text(rows[0].p)}."
    order = sorted(range(len(rows)), key=lambda index: -rows[index].spread)
    significant = [index for index in order if corrected[index] < LEVEL]
    method = f"{test}, corrected for {len(rows)} subjects"
    overall = f"Over all subjects: {extremes(comparison.overall)}."
    if not significant:
        widest = rows[order[0]]
        return (
            f"None for certain: in no subject do the models differ significantly ({method}). The largest difference is "
            f"in {readable(widest.subject)}, {extremes(widest.rates)}; {p_text(corrected[order[0]])}. {overall}"
        )
    names = [f"{readable(rows[index].subject)}, {extremes(rows[index].rates)}" for index in significant[:MAX_NAMED]]
    rest = [f"and {len(significant) - MAX_NAMED} more"] if len(significant) > MAX_NAMED else []
    return f"{len(significant)} of {len(rows)} ({method}: p < {LEVEL}): {'; '.join([*names, *rest])}. {overall}"


def _why_undetermined(comparison: Comparison) -> str:
    """Return why nothing can be said about common mistakes, or an empty string."""
    rates, questions = comparison.overall, len(comparison.group.keys)
    mixed = [label for label, rate in zip(_labels(comparison), rates, strict=True) if 0 < rate.right < rate.n]
    if len(mixed) > 1:
        return ""
    models = _all_models(comparison).lower()
    all_questions = f"all {questions:,} questions" if questions > 1 else "the only question"
    if all(rate.right == rate.n for rate in rates):
        return f"There are no mistakes: {models} answer {all_questions} correctly."
    if not any(rate.right for rate in rates):
        return f"Cannot be determined: {models} miss {all_questions}."
    which = f"only {mixed[0]} has" if mixed else "no model has"
    return f"Cannot be determined: this needs two models with right and wrong answers, and {which} both."


def _labels(comparison: Comparison) -> list[str]:
    return [run.label for run in comparison.group.runs]


def _all_models(comparison: Comparison) -> str:
    runs = len(comparison.group.runs)
    return "Both models" if runs == 2 else f"All {runs} models"


def _range(misses: CommonMisses, index: int) -> str:
    return f"{misses.low[index]:,.0f} to {misses.high[index]:,.0f}"


def expected_count(value: float) -> str:
    """Format an expected count: one decimal below 10, none from there on."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def percent(share: float) -> str:
    """Format a fraction as "45.1 %"."""
    return f"{100 * share:.1f} %"


def p_text(p: float) -> str:
    """Format a p-value as "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def readable(subject: str) -> str:
    """Return a subject's name with spaces instead of underscores."""
    return subject.replace("_", " ")
