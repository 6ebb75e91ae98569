"""Comparisons of two answers by a judge -> win rates, effect of the order, agreement of passes. No torch.

Win rates are those of FastChat's `show_result`: comparisons with a failed judgment are left out, and a verdict that
changes with the order of the answers is a tie. Undefined values are NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from evals.runs.judged import POSITIONS, PairJudgment


@dataclass(frozen=True)
class Agreement:
    """Judgments of which two passes gave a score or verdict, over all pairs of passes."""

    both: int
    same: int
    close: int  # scores at most one point apart; equal to `same` for verdicts

    @property
    def same_share(self) -> float:
        return self.same / self.both if self.both else math.nan

    @property
    def close_share(self) -> float:
        return self.close / self.both if self.both else math.nan


@dataclass(frozen=True)
class WinRate:
    """Comparisons of one model with all others. A verdict that changes with the order of the answers is a tie."""

    model: str
    wins: int
    losses: int
    ties: int

    @property
    def total(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def win_rate(self) -> float:
        return self.wins / self.total

    @property
    def loss_rate(self) -> float:
        return self.losses / self.total

    @property
    def adjusted(self) -> float:
        """Win rate with a tie as half a win."""
        return (self.wins + 0.5 * self.ties) / self.total


@dataclass(frozen=True)
class PairResult:
    """Comparisons of two models. `wins`, `losses` and `ties` are the first model's."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    failed: int  # comparisons without a verdict in one of the orders
    changed: int  # comparisons whose verdict changed with the order of the answers
    decided: int  # verdicts that are not ties, in both orders
    first_place: int  # decided verdicts for the answer that was shown first

    @property
    def total(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def changed_share(self) -> float:
        return self.changed / self.total if self.total else math.nan

    @property
    def first_place_share(self) -> float:
        """Share of decided verdicts for the answer shown first; 0.5 without position bias."""
        return self.first_place / self.decided if self.decided else math.nan


def verdict_agreement(passes: Sequence[Sequence[PairJudgment]]) -> Agreement:
    """Count how often two passes give the same verdict, ties included."""
    winners = [{row.key: _winner(row) for row in rows if "error" not in row.winners} for rows in passes]
    same = [one[key] == other[key] for one, other in combinations(winners, 2) for key in one.keys() & other.keys()]
    return Agreement(len(same), sum(same), sum(same))


def _winner(judgment: PairJudgment) -> str:
    """The model that has won, or "tie"."""
    return "tie" if judgment.winner == "tie" else judgment.models[POSITIONS.index(judgment.winner)]


def win_rates(judgments: Iterable[PairJudgment]) -> list[WinRate]:
    """Return the comparisons won, lost and tied by each model, the best adjusted win rate first."""
    counts: dict[str, Counter[str]] = {}
    for judgment in judgments:
        if "error" in judgment.winners:
            continue
        for model, position in zip(judgment.models, POSITIONS, strict=True):
            result = "ties" if judgment.winner == "tie" else "wins" if judgment.winner == position else "losses"
            counts.setdefault(model, Counter())[result] += 1
    rows = [WinRate(model, count["wins"], count["losses"], count["ties"]) for model, count in counts.items()]
    return sorted(rows, key=lambda row: (-row.adjusted, row.model))


def pair_results(judgments: Iterable[PairJudgment]) -> list[PairResult]:
    """Return the comparisons of every two models, with the effect of the order of the answers."""
    by_pair: dict[tuple[str, str], list[PairJudgment]] = {}
    for judgment in judgments:
        first, second = sorted(judgment.models)
        by_pair.setdefault((first, second), []).append(judgment)
    return [_pair_result(*pair, rows) for pair, rows in sorted(by_pair.items())]


def _pair_result(first: str, second: str, judgments: Sequence[PairJudgment]) -> PairResult:
    valid = [judgment for judgment in judgments if "error" not in judgment.winners]
    winners = Counter(map(_winner, valid))
    # The first of the two orders shows model_1 first, the second model_2.
    shown_first = [
        winner == position
        for judgment in valid
        for winner, position in zip(judgment.winners, POSITIONS, strict=True)
        if winner != "tie"
    ]
    return PairResult(
        first=first,
        second=second,
        wins=winners[first],
        losses=winners[second],
        ties=winners["tie"],
        failed=len(judgments) - len(valid),
        changed=sum(judgment.winners[0] != judgment.winners[1] for judgment in valid),
        decided=len(shown_first),
        first_place=sum(shown_first),
    )
