"""Comparisons of two answers: win rates equal those of FastChat's show_result, and the order's effect is counted."""

from __future__ import annotations

import json
import math

import pytest

from evals.analysis.verdicts import Agreement, pair_results, verdict_agreement, win_rates
from evals.runs.judged import PairJudgment, read_pair_judgments
from tests.evals.synthetic_judged import write_judged


def test_win_rates_are_those_of_show_result(tmp_path):
    import pandas

    write_judged(tmp_path, {"a": 7.0, "b": 5.0, "c": 4.5}, questions=4, pairs=True, swaps=0.2)
    path = tmp_path / "model_judgment" / "judge_pair.jsonl"
    table = pandas.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    valid = table[~table[["g1_winner", "g2_winner"]].eq("error").any(axis=1)]
    agreed = valid["g1_winner"].where(valid["g1_winner"].eq(valid["g2_winner"]), "tie")
    sides = [
        pandas.DataFrame({"model": valid[side], "points": agreed.map({side: 1.0, "tie": 0.5}).fillna(0.0)})
        for side in ("model_1", "model_2")
    ]
    points = pandas.concat(sides).groupby("model")["points"]
    rows = win_rates(read_pair_judgments(path))
    assert len(valid) < len(table)
    assert [row.model for row in rows] == list(points.mean().sort_values(ascending=False).index)
    for row in rows:
        values = points.get_group(row.model)
        assert (row.wins, row.ties, row.losses) == tuple((values == value).sum() for value in (1.0, 0.5, 0.0))
        assert row.win_rate == pytest.approx((values == 1).mean(), abs=1e-12)
        assert row.loss_rate == pytest.approx((values == 0).mean(), abs=1e-12)
        assert row.adjusted == pytest.approx(values.mean(), abs=1e-12)


def test_the_effect_of_the_order_is_counted():
    rows = [
        _pair("ab", "model_1", "model_1"),
        _pair("ab", "model_1", "model_2"),  # the first answer wins in both orders
        _pair("ab", "model_2", "model_1"),  # the second answer wins in both orders
        _pair("ab", "model_1", "tie"),
        _pair("ab", "tie", "tie"),
        _pair("ab", "error", "model_1"),
    ]
    (result,) = pair_results(rows)
    assert (result.wins, result.losses, result.ties, result.failed) == (1, 0, 4, 1)
    assert (result.changed, result.decided, result.first_place) == (3, 7, 4)
    assert (result.changed_share, result.first_place_share) == (3 / 5, 4 / 7)


def test_a_pair_is_one_pair_in_both_positions():
    (result,) = pair_results([_pair("ab", "model_1", "model_1"), _pair("ba", "model_1", "model_1", 2)])
    assert (result.first, result.second, result.wins, result.losses) == ("a", "b", 1, 1)


def test_verdicts_of_two_passes_agree_on_models_and_not_on_positions():
    passes = [[_pair("ab", "model_1", "model_1")], [_pair("ba", "model_2", "model_2")]]
    assert verdict_agreement(passes) == Agreement(1, 1, 1)


def test_comparisons_without_verdicts_have_no_shares():
    (result,) = pair_results([_pair("ab", "error", "error")])
    assert math.isnan(result.changed_share)
    assert math.isnan(result.first_place_share)
    assert win_rates([_pair("ab", "error", "model_2")]) == []


def test_two_passes_agree_on_verdicts():
    first = [_pair("ab", "tie", "tie"), _pair("ab", "model_1", "model_1", 2), _pair("ab", "error", "tie", 3)]
    second = [_pair("ab", "model_1", "model_2"), _pair("ab", "model_2", "model_2", 2), _pair("ab", "tie", "tie", 3)]
    assert verdict_agreement([first, second]) == Agreement(2, 1, 1)


def _pair(models: str, first: str, second: str, question: int = 1) -> PairJudgment:
    return PairJudgment(question, (models[0], models[1]), (first, second), "judge", "pair-v2", ("", ""), ("", ""), 1, 0)
