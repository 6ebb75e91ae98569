"""What scores are worth, in sentences, follows from their numbers; tables show them in any width."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evals.analysis.judgment_tables import findings, markdown, print_judged, text_tables
from evals.analysis.judgments import JudgeAnalysis, analyse
from evals.runs.judged import Judgment, PairJudgment
from evals.runs.judged_folder import JudgeFiles, load_judged
from tests.evals.synthetic_judged import write_judged


def judged(*passes: dict[str, list[float]], judge: str = "judge") -> JudgeFiles:
    """Judgments of one turn: for each pass, the scores by model and question."""
    return JudgeFiles(
        judge,
        [
            [
                Judgment(question, model, judge, "single-v1", "", "", float(score), 1, 0.0)
                for model, scores in by_model.items()
                for question, score in enumerate(scores)
            ]
            for by_model in passes
        ],
    )


def only(*files: JudgeFiles) -> JudgeAnalysis:
    return analyse(files, {})[0]


GOOD = [2, 4, 6, 8, 9] * 8


@pytest.mark.parametrize(
    ("passes", "start", "part"),
    [
        ([{"a": GOOD}], "Nothing in their numbers", "There is no second pass"),
        ([{"a": GOOD}, {"a": GOOD}], "Nothing in their numbers", "same score in 100.0 % of 40 cases"),
        ([{"a": [*GOOD, *[-1] * 20]}], "Little: many judgments have no score.", "20 (33.3 %) have no score"),
        ([{"a": GOOD * 3, "b": [5, -1]}], "Little: many judgments of b have no score.", "1 (0.8 %)"),
        ([{"a": [5.0] * 40}], "Little: the scores hardly differ.", "0.00 and 1 different value."),
        ([{"a": [7.0]}], "Little: the scores hardly differ.", "the scores have 1 different value."),
        ([{"a": GOOD}, {"a": GOOD[::-1]}], "Little: the judge does not repeat them.", "apart in 20.0 %"),
        ([{"a": [*GOOD, 100]}], "Little: 1 score is outside 1 to 10.", ""),
        ([{"a": [-1, -1]}], "Nothing: none of 2 judgments has a score.", ""),
    ],
)
def test_what_scores_are_worth_follows_from_their_numbers(passes, start, part):
    (line, *_) = findings(only(judged(*passes)))
    assert line.startswith(f"What are the scores worth? {start}")
    assert part in line


def test_models_differ_only_if_the_interval_of_the_difference_excludes_0():
    lower = [max(1, score - 2) for score in GOOD]
    shuffled = GOOD[3:] + GOOD[:3]
    assert findings(only(judged({"a": GOOD, "b": lower})))[1].startswith("Which models differ? a and b (+1.80; ")
    (line,) = findings(only(judged({"a": GOOD, "b": shuffled})))[1:]
    assert line.startswith("Which models differ? None for certain. The 95 % interval of the difference includes 0 for")
    (line,) = findings(only(judged({"a": GOOD, "b": shuffled, "c": lower})))[1:]
    assert line.startswith("Which models differ? 2 of 3 pairs. ")


def test_with_one_question_nobody_can_tell_which_models_differ():
    line = findings(only(judged({"a": [3], "b": [2]})))[1]
    assert line == "Which models differ? Unknown: too few questions to tell."
    line = findings(only(judged({"a": GOOD, "b": [max(1, score - 2) for score in GOOD], "c": [5]})))[1]
    assert line.startswith("Which models differ? a and b (+1.80; ")
    assert line.endswith("includes 0. 2 pairs with too few questions to tell.")


def test_a_judge_of_its_own_answers_is_compared_with_other_judges():
    own = judged({"judge": [score / 2 + 5 for score in GOOD], "b": GOOD})
    other = judged({"judge": GOOD, "b": GOOD}, judge="other")
    assert "Does the judge prefer its own answers? Unknown." in " ".join(findings(only(own)))
    text = " ".join(findings(only(own, other)))
    assert "Does the judge prefer its own answers? Yes." in text
    assert "+2.10 points against other judges" in text
    assert "prefer" not in " ".join(findings(only(other, own)))


def test_verdicts_that_change_with_the_order_are_worth_little():
    def compared(winners: list[tuple[str, str]]) -> str:
        rows = [
            PairJudgment(index, ("a", "b"), pair, "judge", "pair-v2", ("", ""), ("", ""), 1, 0.0)
            for index, pair in enumerate(winners)
        ]
        return findings(only(JudgeFiles("judge", [], [rows])))[0]

    same, swapped, failed = ("model_1", "model_1"), ("model_1", "model_2"), ("error", "tie")
    assert compared([same] * 4).startswith("Does the order of two answers decide? No.")
    assert "Sometimes. The verdict changes with the order in 20.0 % of 5" in compared([same] * 4 + [swapped])
    assert "Often: the verdicts are worth little." in compared([same, swapped])
    assert compared([failed]).endswith("Unknown: none of 1 comparison has a verdict in both orders.")


def test_tables_and_markdown_have_the_same_numbers(tmp_path, capsys):
    write_judged(tmp_path / "mt_bench", {"[bold]a": 7.0, "b": 5.0}, questions=1, passes=2, pairs=True)
    (folder,) = load_judged([str(tmp_path)])
    analyses = analyse(folder.judges, folder.categories)
    print_judged(folder, analyses)
    printed, written = capsys.readouterr().out, markdown(folder, analyses)
    assert printed.startswith("MT-Bench, judged by judge\n")
    assert written.startswith("# MT-Bench, judged by judge\n")
    for table in text_tables(analyses[0]):
        assert table.title in printed
        for _, *cells in table.rows:
            assert all(cell in printed for cell in cells)
            assert f"| {' | '.join(cells)} |" in written


def test_unknown_questions_have_no_table_of_categories(tmp_path):
    write_judged(tmp_path, {"a": 7.0}, saved=False, questions=1)
    (folder,) = load_judged([str(tmp_path)])
    titles = [table.title for table in text_tables(analyse(folder.judges, folder.categories)[0])]
    assert titles == ["Scores by judge"]
    (empty,) = analyse([replace(folder.judges[0], single=[])], {})
    assert text_tables(empty) == findings(empty) == []
