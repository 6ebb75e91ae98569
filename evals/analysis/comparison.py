"""All statistics of a group of runs, computed from their run files. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from evals.analysis.calibration import Calibration, ChoiceBias, calibration, choice_bias
from evals.analysis.patterns import (
    CommonMisses,
    HardQuestion,
    Overlap,
    PairedDifference,
    Rate,
    SubjectRow,
    by_subject,
    common_misses,
    hardest_questions,
    overall,
    overlaps,
    paired,
)
from evals.analysis.statistics import holm_correction
from evals.runs.collection import Group

PERMUTATIONS, SEED, HARDEST = 10_000, 0, 10  # defaults


@dataclass(frozen=True)
class Comparison:
    """The statistics of a group of runs. Runs are given by their index in `group.runs`."""

    group: Group
    overall: list[Rate]  # of each run
    subjects: list[SubjectRow]
    corrected: list[float]  # the subjects' p-values, corrected by Holm
    paired: list[PairedDifference]
    misses: CommonMisses
    overlaps: list[Overlap]
    alike: list[tuple[int, int]]  # pairs of runs with the same answer to every question
    choice_bias: list[ChoiceBias]
    calibration: list[Calibration]
    hardest: list[HardQuestion]


def compare(group: Group, permutations: int = PERMUTATIONS, seed: int = SEED, hardest: int = HARDEST) -> Comparison:
    """Compute all statistics of a group. With a single run, those that compare runs are empty."""
    subjects = by_subject(group)
    answers = [[run.records[key]["prediction"] for key in group.keys] for run in group.runs]
    return Comparison(
        group=group,
        overall=overall(group),
        subjects=subjects,
        corrected=holm_correction([row.p for row in subjects]),
        paired=paired(group),
        misses=common_misses(group, permutations, seed),
        overlaps=overlaps(group),
        alike=[(i, j) for i, j in combinations(range(len(answers)), 2) if answers[i] == answers[j]],
        choice_bias=choice_bias(group),
        calibration=calibration(group),
        hardest=hardest_questions(group, hardest),
    )
