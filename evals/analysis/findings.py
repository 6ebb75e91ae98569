"""A comparison of runs -> answers in words with numbers, which stay right where there is little to tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evals.data.catalogue import BENCHMARKS

if TYPE_CHECKING:
    from evals.analysis.comparison import Comparison
    from evals.analysis.patterns import Misses, Overlap, Rate

LEVEL = 0.05  # the p-value from which on it cannot be told
NAMED = 5  # subjects, of which more are only counted
FEW = 100  # questions


def words(comparison: Comparison) -> list[str]:
    """Three questions, each with its answer in words and numbers; none for a single run."""
    if len(comparison.group.runs) == 1:
        return []
    return [
        f"Are these mistakes random? {_random(comparison)}",
        f"Do the models miss the same questions? {_same(comparison)}",
        f"Which subjects divide them? {_dividing(comparison)}",
    ]


def notes(comparison: Comparison) -> list[str]:
    """Which questions are left out because not all runs have them."""
    group = comparison.group
    benchmark, subjects = BENCHMARKS.get(group.task), set(group.subjects)
    pools = benchmark is None or benchmark.pools
    more = [sum(pools or name in subjects for name, _ in own.records) - len(group.keys) for own in group.runs]
    return [
        f"{own.label} answered {count(extra, 'more question')}, which not all models did: left out here."
        for own, extra in zip(group.runs, more, strict=True)
        if extra
    ]


def _random(comparison: Comparison) -> str:
    if reason := _nothing(comparison):
        return reason
    misses, questions = comparison.misses, len(comparison.group.keys)
    numbers = (
        f"{_all(comparison)} miss {misses.observed[-1]:,} of {questions:,} questions, and {misses.observed[0]:,} are "
        f"missed by none; if their mistakes were independent it would be {number(misses.expected[-1])} "
        f"({_range(misses, -1)} in 95 % of all shuffles) and {number(misses.expected[0])} ({_range(misses, 0)})."
    )
    test = f"(permutation test: {p_words(misses.p)})"
    if misses.p < LEVEL:
        where = "the same" if misses.excess > 0 else "different"
        return f"No. {numbers} They fall on {where} questions more than chance has it {test}.{_within(comparison)}"
    few = f"; {count(questions, 'question')} tell little" if questions < FEW else ""
    verdict = "It cannot be told." if misses.p_within >= LEVEL else "Not within the subjects."
    return f"{verdict} {numbers} That may be chance {test}{few}.{_within(comparison)}"


def _within(comparison: Comparison) -> str:
    """What is left when hard and easy subjects are accounted for."""
    misses, p = comparison.misses, p_words(comparison.misses.p_within)
    same = misses.p < LEVEL and misses.excess > 0
    if len(comparison.subjects) == 1:
        return ""
    if misses.p_within >= LEVEL:
        why = ": it may be that only some subjects are harder than others" if same else ""
        return f" Within the subjects that cannot be told ({p}){why}."
    if misses.excess_within <= 0:
        return f" Within the subjects they fall on different questions more than chance has it ({p})."
    if same:
        return f" So they do within the subjects ({p}): it is single questions that are hard for several models."
    return f" But within the subjects they fall on the same questions more than chance has it ({p})."


def _same(comparison: Comparison) -> str:
    if reason := _nothing(comparison):
        return reason
    misses, labels = comparison.misses, _labels(comparison)
    if misses.p < LEVEL:
        verdict = "Yes, more than by chance." if misses.excess > 0 else "No, less than by chance."
    elif misses.p_within < LEVEL:
        verdict = f"Within the subjects, {'more' if misses.excess_within > 0 else 'less'} than by chance."
    else:
        verdict = "Whether more than by chance cannot be told."

    def told(own: Overlap) -> str:
        return f"both miss {percent(own.jaccard)} (by chance {percent(own.expected_jaccard)})"

    missing = [own for own in comparison.overlaps if not math.isnan(own.jaccard)]
    pairs = sorted(missing, key=lambda own: own.expected_jaccard - own.jaccard)
    most, least = pairs[0], pairs[-1]
    if most is least:
        numbers = f"Of the questions that {labels[most.first]} or {labels[most.second]} misses, {told(most)}."
    else:
        numbers = (
            f"Most alike are {labels[most.first]} and {labels[most.second]}: of the questions that either misses, "
            f"{told(most)}. Least alike are {labels[least.first]} and {labels[least.second]}: {told(least)}."
        )
    return " ".join([verdict, numbers, *_same_choice(comparison), *_same_answers(comparison)])


def _same_choice(comparison: Comparison) -> list[str]:
    """How often two models that miss a question choose the same wrong answer, over all pairs."""
    told = [
        (own.both_wrong, own.same_choice, own.expected_same)
        for own in comparison.overlaps
        if own.same_choice is not None and own.expected_same is not None
    ]
    if not told:
        return []
    total = sum(both for both, _, _ in told)
    same, expected = (sum(own[0] * own[part] for own in told) / total for part in (1, 2))
    benchmark = BENCHMARKS.get(comparison.group.task)
    places = "letters" if benchmark is not None and benchmark.letters else "places among the choices"
    return [
        f"Where two models miss a question, they make the same wrong choice in {percent(same)} of the cases; "
        f"their preferences for {places} alone would give {percent(expected)}."
    ]


def _same_answers(comparison: Comparison) -> list[str]:
    labels = _labels(comparison)
    pairs = [f"{labels[first]} and {labels[second]}" for first, second in comparison.alike]
    if not pairs:
        return []
    return [f"The same answer to every question is given by {listed(pairs)}: perhaps it is one model, scored twice."]


def _dividing(comparison: Comparison) -> str:
    rows, corrected, labels = comparison.subjects, comparison.corrected, _labels(comparison)
    test = "McNemar's test" if len(labels) == 2 else "Cochran's Q test"

    def told(rates: Sequence[Rate]) -> str:
        means = [rate.mean for rate in rates]
        low, high = (each(range(len(means)), key=means.__getitem__) for each in (min, max))
        return f"from {percent(means[low])} ({labels[low]}) to {percent(means[high])} ({labels[high]})"

    if all(row.spread == 0 for row in rows):
        where = f"the one subject, {plain(rows[0].subject)}," if len(rows) == 1 else f"each of the {len(rows)} subjects"
        return f"None: in {where} all models are right equally often."
    if len(rows) == 1:
        verdict = "and it does" if rows[0].p < LEVEL else "and whether it does cannot be told"
        return (
            f"There is one, {plain(rows[0].subject)}, {verdict}: {told(rows[0].rates)}; {test}: {p_words(rows[0].p)}."
        )
    order = sorted(range(len(rows)), key=lambda at: -rows[at].spread)
    found = [at for at in order if corrected[at] < LEVEL]
    method = f"{test}, corrected for {len(rows)} subjects"
    everywhere = f"Over all subjects it is {told(comparison.overall)}."
    if not found:
        widest = rows[order[0]]
        return (
            f"None can be named: in none do the models differ by more than chance may have it ({method}). Widest apart "
            f"is {plain(widest.subject)}, {told(widest.rates)}; {p_words(corrected[order[0]])}. {everywhere}"
        )
    names = [f"{plain(rows[at].subject)}, {told(rows[at].rates)}" for at in found[:NAMED]]
    rest = [f"and {len(found) - NAMED} more"] if len(found) > NAMED else []
    return f"{len(found)} of {len(rows)} ({method}: p < {LEVEL}): {'; '.join([*names, *rest])}. {everywhere}"


def _nothing(comparison: Comparison) -> str:
    """Why nothing can be said of common mistakes; empty where something can."""
    rates, questions = comparison.overall, len(comparison.group.keys)
    both = [label for label, rate in zip(_labels(comparison), rates, strict=True) if 0 < rate.right < rate.n]
    if len(both) > 1:
        return ""
    everything = f"all {questions:,} questions" if questions > 1 else "the one question"
    if all(rate.right == rate.n for rate in rates):
        return f"There are no mistakes: {_all(comparison).lower()} are right on {everything}."
    if not any(rate.right for rate in rates):
        return f"It cannot be told: {_all(comparison).lower()} miss {everything}."
    only = f"only {both[0]} has" if both else "no model has"
    return f"It cannot be told: it takes two models with right and wrong answers, and {only} both."


def _labels(comparison: Comparison) -> list[str]:
    return [own.label for own in comparison.group.runs]


def _all(comparison: Comparison) -> str:
    runs = len(comparison.group.runs)
    return "Both models" if runs == 2 else f"All {runs} models"


def _range(misses: Misses, place: int) -> str:
    return f"{misses.low[place]:,.0f} to {misses.high[place]:,.0f}"


def number(value: float) -> str:
    """An expected count: whole where it is large."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def percent(share: float) -> str:
    """45.1 %."""
    return f"{100 * share:.1f} %"


def p_words(p: float) -> str:
    """p = 0.012, or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def plain(subject: str) -> str:
    """A subject's name in a sentence."""
    return subject.replace("_", " ")


def count(things: int, thing: str) -> str:
    """1 question, 1,234 questions."""
    return f"{things:,} {thing}" + ("" if things == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """One, another and a third."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
