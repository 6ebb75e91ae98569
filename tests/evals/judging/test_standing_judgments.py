"""What others judge meanwhile, what stands in other positions, what is replaced: nothing is asked for twice."""

from __future__ import annotations

import pytest

from engine.runtime.errors import BareloopError
from evals.analysis.verdicts import pair_results, win_rates
from evals.judging.judges import JudgeError, PromptTooLongError
from evals.judging.judgments import judge_matches, plan
from evals.judging.matches import pair_matches
from evals.runs.judged import judgments_path, read_judgments, read_pair_judgments
from tests.evals.judging.scripted import QUESTION_SET, Scripted, answers, failing_for, pairs, singles


def reversed_pairs():
    return pair_matches(QUESTION_SET, answers("a", "b"), [("b", "a")])


def test_what_another_process_judges_before_the_file_is_open_is_not_judged_again(tmp_path):
    """The other one runs while this one loads its judge."""

    class Slow(Scripted):
        def start(self):
            judge_matches(singles()[:6], Scripted(), tmp_path, "single")

    judge_matches(singles(), judge := Slow(), tmp_path, "single")
    assert sorted(prompt[:3] for _, prompt in judge.asked) == ["Q87", "Q88"]
    assert len(judgments_path(tmp_path, "scripted", "single").read_text().splitlines()) == 8


def test_a_pair_is_judged_once_in_whatever_positions(tmp_path):
    prefers_a = Scripted(lambda prompt, number: "[[A]]" if "-> a" in prompt else "[[B]]")
    judge_matches(pairs(), prefers_a, tmp_path, "pair")
    judge_matches(reversed_pairs(), judge := Scripted(), tmp_path, "pair")
    assert judge.asked == []
    (part,) = plan(reversed_pairs(), "scripted", tmp_path, "pair")
    assert {(entry.models, entry.winners) for entry in part.entries.values()} == {(("b", "a"), ("model_2", "model_2"))}


def test_the_failed_order_of_a_pair_is_asked_for_in_other_positions_and_counts_once(tmp_path):
    path = judgments_path(tmp_path, "scripted", "pair")
    judge_matches(pairs(), Scripted(failing_for("> b's answer to 85", verdict="[[A]]")), tmp_path, "pair")
    judge_matches(reversed_pairs(), judge := Scripted(lambda prompt, number: "[[B]]"), tmp_path, "pair", retry=True)
    assert judge.asked == [(1, "Q85? -> b's answer to 85 or a's answer to 85")]
    rows = read_pair_judgments(path)
    assert len(rows) == 8 < len(path.read_text().splitlines())
    assert [row.winner for row in rows if row.question_id == 85] == ["model_2"]  # a is the second there
    (result,) = pair_results(rows)
    assert (result.first, result.wins, result.ties, result.failed) == ("a", 1, 7, 0)
    assert [(row.model, row.total) for row in win_rates(rows)] == [("a", 8), ("b", 8)]


@pytest.mark.parametrize("again", ["retry", "fresh"])
def test_old_judgments_stay_until_the_first_new_one_is_there(tmp_path, again):
    judge_matches(singles(), Scripted(), tmp_path, "single")
    path = judgments_path(tmp_path, "scripted", "single")
    before = path.read_bytes()

    def interrupted(prompt, number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_matches(singles(text="other"), Scripted(interrupted), tmp_path, "single", concurrency=1, **{again: True})
    assert path.read_bytes() == before
    assert [*path.parent.glob("*.old")] == []
    judge_matches(singles(text="other"), Scripted(), tmp_path, "single", **{again: True})
    (old,) = path.parent.glob("*.old")
    assert old.read_bytes() == before
    assert len(read_judgments(path)) == 8


def test_a_damaged_file_is_renamed_by_starting_over(tmp_path):
    path = judgments_path(tmp_path, "scripted", "single")
    path.parent.mkdir()
    path.write_text("{\n")
    with pytest.raises(BareloopError, match=r"line 1 is not a judgment: .* or use --fresh, which renames it"):
        judge_matches(singles(), Scripted(), tmp_path, "single", retry=True)
    judge_matches(singles(), Scripted(), tmp_path, "single", fresh=True)
    assert len(read_judgments(path)) == 8
    (old,) = path.parent.glob("*.old")
    assert old.read_text() == "{\n"


def test_retry_is_named_only_for_what_it_may_help(tmp_path, capsys):
    def script(prompt, number):
        raise (PromptTooLongError if "Q81" in prompt else JudgeError)("no")

    judge_matches(singles()[:2], Scripted(script), tmp_path, "single")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("(the last: no); too long for this judge: 1 prompt; --retry asks for the others again")
