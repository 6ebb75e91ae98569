"""Scores of judges: means equal those of FastChat's show_result, and intervals those of a plain bootstrap."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import pytest

from evals.analysis import judgments
from evals.analysis.judgments import Agreement, analyse, mean_score, score_agreement, self_preference
from evals.runs.judged import Judgment
from evals.runs.judged_folder import JudgeFiles, load_judged
from tests.evals.synthetic_judged import write_judged

MODELS = {"large": 7.5, "small": 5.0, "small-int8": 4.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_judged(tmp_path_factory.mktemp("judged"), MODELS, passes=2, unscored=0.1)


def test_means_are_those_of_show_result(folder):
    import pandas

    lines = (folder / "model_judgment" / "judge_single.jsonl").read_text().splitlines()
    table = pandas.DataFrame([json.loads(line) for line in lines])
    scored = table.query("score != -1")
    by_turn = scored.pivot_table(values="score", index="model", columns="turn", aggfunc="mean")
    overall = scored.groupby("model")["score"].agg(["mean", "std", "nunique", "size"])
    categories = load_judged([str(folder)])[0].categories
    by_category = scored.assign(category=scored["question_id"].map(categories)).groupby(["model", "category"])["score"]
    (analysis,) = analyse(load_judged([str(folder)])[0].judges, categories)
    assert [row.model for row in analysis.models] == list(overall.sort_values("mean", ascending=False).index)
    assert (table["score"] == -1).sum() > 5
    for row in analysis.models:
        expected = overall.loc[row.model]
        for turn in (1, 2):
            assert row.turns[turn].mean == pytest.approx(by_turn.loc[row.model, turn], abs=1e-12)
        assert row.overall.mean == pytest.approx(expected["mean"], abs=1e-12)
        assert row.deviation == pytest.approx(expected["std"], abs=1e-12)
        assert (row.distinct, row.overall.count) == (expected["nunique"], expected["size"])
        assert row.unscored == ((table["model"] == row.model) & (table["score"] == -1)).sum()
        means = {name: mean.mean for name, mean in row.categories.items()}
        assert means == pytest.approx(by_category.mean()[row.model].to_dict(), abs=1e-12)
    assert analysis.deviation == pytest.approx(scored["score"].std(), abs=1e-12)


def test_the_mean_over_both_turns_is_not_the_mean_of_the_turns_means():
    mean = mean_score({(1, 1): 8.0, (2, 1): 8.0, (2, 2): 2.0})
    assert mean.mean == 6.0


def test_intervals_resample_questions_with_both_turns():
    random = Random(0)
    scores = {}
    for question in range(40):
        scores[question, 1] = float(random.randint(1, 10))
        if question % 3:
            scores[question, 2] = scores[question, 1]
    resampled = []
    for _ in range(4_000):
        drawn = random.choices(range(40), k=40)
        values = [scores[question, turn] for question in drawn for turn in (1, 2) if (question, turn) in scores]
        resampled.append(sum(values) / len(values))
    resampled.sort()
    mean = mean_score(scores)
    assert (mean.low, mean.high) == pytest.approx((resampled[100], resampled[3_900]), abs=0.08)
    single = [score for (_, turn), score in scores.items() if turn == 1]
    assert mean.high - mean.low > 3.4 * math.sqrt(sum((one - mean.mean) ** 2 for one in single)) / 40


def test_intervals_are_the_same_in_every_run():
    scores = {(question, turn): float(question % 7) for question in range(20) for turn in (1, 2)}
    first = mean_score(scores)
    judgments._resamples.cache_clear()
    assert mean_score(scores) == first


def test_one_question_has_no_interval_and_no_score_no_mean():
    one = mean_score({(1, 1): 7.0, (1, 2): 3.0})
    assert (one.mean, one.count) == (5.0, 2)
    assert math.isnan(one.low)
    assert math.isnan(mean_score({}).mean)


def test_differences_are_paired(folder):
    """A constant difference has an interval without width, although the scores vary."""
    rows = [_judgment(question, "a", 1 + question % 8) for question in range(30)]
    rows += [_judgment(question, "b", 2 + question % 8) for question in range(25)]
    rows += [_judgment(question, "c", -1) for question in range(30)]
    (analysis,) = analyse([JudgeFiles("judge", [rows])], {})
    assert [row.model for row in analysis.models] == ["b", "a", "c"]
    (difference,) = analysis.differences
    assert (difference.first, difference.second, difference.is_clear) == ("b", "a", True)
    assert difference.points == judgments.Mean(1.0, 1.0, 1.0, 25)


def test_two_passes_agree_where_both_have_a_score():
    first = {(1, 1): 5.0, (1, 2): 7.0, (2, 1): 3.0, (2, 2): 9.0}
    second = {(1, 1): 5.0, (1, 2): 8.0, (2, 1): 5.0, (3, 1): 1.0}
    assert score_agreement([first, second]) == Agreement(both=3, same=1, close=2)
    assert score_agreement([first]) == Agreement(0, 0, 0)
    assert score_agreement([first, first, first]).both == 12
    assert math.isnan(score_agreement([first]).same_share)


def test_a_judge_that_raises_only_its_own_answers_prefers_them():
    scores = {model: {(question, 1): float(question % 5) for question in range(20)} for model in ("judge", "b", "c")}
    raised = scores | {"judge": {key: score + 2 for key, score in scores["judge"].items()}}
    preference = self_preference("judge", raised, [scores, scores])
    assert preference is not None
    assert (preference.mean, preference.low, preference.high) == pytest.approx((2.0, 2.0, 2.0))
    strict = {model: {key: score - 3 for key, score in rows.items()} for model, rows in scores.items()}
    assert self_preference("judge", strict, [scores]).mean == pytest.approx(0.0)
    assert self_preference("judge", raised, []) is None
    assert self_preference("other", raised, [scores]) is None


def test_judgments_without_a_score_are_left_out_and_counted():
    rows = [_judgment(1, "a", 4), _judgment(2, "a", -1), _judgment(3, "a", -1), _judgment(4, "a", 60)]
    (analysis,) = analyse([JudgeFiles("judge", [rows])], {1: "math"})
    (row,) = analysis.models
    assert (row.judged, row.unscored, row.outside, row.overall.mean) == (4, 2, 1, 32.0)
    assert list(row.categories) == ["math"]


def _judgment(question: int, model: str, score: float) -> Judgment:
    return Judgment(question, model, "judge", "single-v1", "", "", float(score), 1, 0.0)
