"""What the mistakes of several models have in common, computed from their run files. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from evals.analysis import patterns
from evals.analysis.patterns import Calibration, ChoiceBias, Hard, Misses, Overlap, Paired, Rate, SubjectRow
from evals.analysis.statistics import holm
from evals.runs.collection import Group

PERMUTATIONS, SEED, HARDEST = 10_000, 0, 10  # by default


@dataclass(frozen=True)
class Comparison:
    """All that is computed of a group of runs. Runs are named by their places in `group.runs`."""

    group: Group
    overall: list[Rate]  # of each run
    subjects: list[SubjectRow]
    corrected: list[float]  # the subjects' p-values, by Holm
    paired: list[Paired]
    misses: Misses
    overlaps: list[Overlap]
    alike: list[tuple[int, int]]  # runs that answer every question alike
    choice_bias: list[ChoiceBias]
    calibration: list[Calibration]
    hardest: list[Hard]


def compare(group: Group, permutations: int = PERMUTATIONS, seed: int = SEED, hardest: int = HARDEST) -> Comparison:
    """A group of runs -> what their mistakes have in common; of one run alone, what is said of each."""
    subjects = patterns.by_subject(group)
    answers = [[own.records[key]["prediction"] for key in group.keys] for own in group.runs]
    return Comparison(
        group=group,
        overall=patterns.overall(group),
        subjects=subjects,
        corrected=holm([row.p for row in subjects]),
        paired=patterns.paired(group),
        misses=patterns.common_misses(group, permutations, seed),
        overlaps=patterns.overlaps(group),
        alike=[pair for pair in combinations(range(len(answers)), 2) if answers[pair[0]] == answers[pair[1]]],
        choice_bias=patterns.choice_bias(group),
        calibration=patterns.calibration(group),
        hardest=patterns.hardest(group, hardest),
    )
