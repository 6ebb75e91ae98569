"""Files of answers and judgments: FastChat's, to the byte, and nothing in them is ever lost."""

from __future__ import annotations

import json

import pytest

from engine.runtime.errors import BareloopError
from evals.runs.judged import (
    Answer,
    Judgment,
    PairJudgment,
    answers_path,
    as_line,
    judgments_path,
    read_answers,
    read_judgments,
    read_pair_judgments,
)
from evals.runs.judged_file import JudgedFile, sort_file

# Lines as FastChat writes them.
ANSWER = (
    '{"question_id": 81, "answer_id": "a1", "model_id": "m", '
    '"choices": [{"index": 0, "turns": ["Aloha \\u2013", "B"]}], "tstamp": 1686286924.844282}\n'
)
JUDGMENT = (
    '{"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "user_prompt": "p", '
    '"judgment": "Rating: [[9]]", "score": 9, "turn": 1, "tstamp": 1686945215.4}\n'
)
PAIR = (
    '{"question_id": 81, "model_1": "m", "model_2": "n", "g1_winner": "model_2", "g2_winner": "tie", '
    '"judge": ["gpt-4", "pair-v2"], "g1_user_prompt": "p1", "g1_judgment": "[[B]]", "g2_user_prompt": "p2", '
    '"g2_judgment": "[[C]]", "turn": 2, "tstamp": 1687222844.3}\n'
)


def write(path, *texts: str):
    path.write_text("".join(texts), encoding="utf-8")
    return path


def answer(number: int, text: str = "yes", **fields) -> Answer:
    return Answer(number, "m", ((text, "no"),), **fields)


def pair(*winners: str) -> PairJudgment:
    return PairJudgment(81, ("m", "n"), winners, "j", "p", ("", ""), ("", ""), 1, 0.0)


def test_lines_are_those_of_fastchat_to_the_byte(tmp_path):
    path = tmp_path / "lines"
    assert [as_line(entry) for entry in read_answers(write(path, ANSWER)).values()] == [ANSWER]
    assert [as_line(entry) for entry in read_judgments(write(path, JUDGMENT))] == [JUDGMENT]
    assert [as_line(entry) for entry in read_pair_judgments(write(path, PAIR))] == [PAIR]


def test_the_published_reference_answers_are_read_and_written_as_they_are(shared):
    path = shared / "data/mt_bench/reference_answer/gpt-4.jsonl"
    assert "".join(map(as_line, read_answers(path).values())) == path.read_text()


def test_our_own_usage_comes_last_and_is_read(tmp_path):
    usage = ({"prompt_tokens": 3, "finish_reason": "stop"}, {"prompt_tokens": 5, "finish_reason": "length"})
    written = answer(81, usage=usage, answer_id="a", tstamp=1.5)
    line = as_line(written)
    assert list(json.loads(line)) == ["question_id", "answer_id", "model_id", "choices", "tstamp", "usage"]
    assert read_answers(write(tmp_path / "a", line)) == {81: written}


@pytest.mark.parametrize(("score", "written"), [(-1.0, "-1"), (7.5, "7.5"), (10.0, "10")])
def test_a_score_is_written_as_fastchat_does(score, written):
    line = as_line(Judgment(81, "m", "j", "p", "", "", score, 1, 0.0))
    assert f'"score": {written}, ' in line


def test_other_fields_of_other_programs_do_not_matter(tmp_path):
    row = {**json.loads(ANSWER), "generate_params": {"top_p": 0.9}}
    assert read_answers(write(tmp_path / "a", json.dumps(row)))[81].turns == ("Aloha –", "B")


def test_the_last_line_of_a_question_or_match_counts(tmp_path):
    path = write(tmp_path / "a", as_line(answer(81, "old")), as_line(answer(82)), as_line(answer(81, "new")))
    assert {number: entry.turns[0] for number, entry in read_answers(path).items()} == {81: "new", 82: "yes"}
    later = JUDGMENT.replace('"score": 9', '"score": 4')
    assert [entry.score for entry in read_judgments(write(path, JUDGMENT, later))] == [4.0]
    assert [entry.winners for entry in read_pair_judgments(write(path, PAIR.replace("tie", "error"), PAIR))] == [
        ("model_2", "tie")
    ]


def test_a_damaged_line_is_named_and_a_torn_one_is_not_there(tmp_path):
    path = write(tmp_path / "a.jsonl", ANSWER, ANSWER[:50])
    assert [*read_answers(path)] == [81]
    with pytest.raises(BareloopError, match=r"a\.jsonl, line 2 is not an answer"):
        read_answers(write(path, ANSWER, ANSWER[:50] + "\n", ANSWER))
    with pytest.raises(BareloopError, match="line 1 is not a judgment:"):
        read_judgments(write(path, ANSWER))
    with pytest.raises(BareloopError, match="line 1 is not a judgment of a pair"):
        read_pair_judgments(write(path, PAIR.replace('"tie"', '"nobody"')))


@pytest.mark.parametrize("score", ["NaN", "1e999", "-Infinity", "1000000", "9" * 400])
def test_only_scores_that_can_be_counted_with_are_read(tmp_path, score):
    with pytest.raises(BareloopError, match="line 1 is not a judgment:"):
        read_judgments(write(tmp_path / "a", JUDGMENT.replace('"score": 9', f'"score": {score}')))


def test_only_the_turns_that_judges_see_are_read(tmp_path):
    with pytest.raises(BareloopError, match="line 1 is not a judgment:"):
        read_judgments(write(tmp_path / "a", JUDGMENT.replace('"turn": 1', '"turn": 1000000000')))
    with pytest.raises(BareloopError, match="line 1 is not a judgment of a pair"):
        read_pair_judgments(write(tmp_path / "a", PAIR.replace('"turn": 2', '"turn": 0')))
    late = JUDGMENT.replace("1686945215.4", "9" * 400)
    assert [entry.tstamp for entry in read_judgments(write(tmp_path / "a", late))] == [0.0]


def test_a_pair_is_the_same_in_both_positions(tmp_path):
    there = PairJudgment(81, ("m", "n"), ("model_1", "tie"), "j", "p", ("mn", "nm"), ("A", "C"), 1, 0.0)
    back = PairJudgment(81, ("n", "m"), ("tie", "model_2"), "j", "p", ("nm", "mn"), ("C", "A"), 1, 0.0)
    assert there.swapped() == back and back.swapped() == there
    assert read_pair_judgments(write(tmp_path / "a", as_line(there), as_line(back))) == [back]


def test_lines_that_are_set_aside_are_in_another_file(tmp_path):
    path = write(tmp_path / "a.jsonl", JUDGMENT, JUDGMENT.replace('"m"', '"n"'))
    with JudgedFile(path) as file:
        file.set_aside([(81, "n", 1)])
        file.append(read_judgments(path)[0])
    assert path.read_text() == JUDGMENT + JUDGMENT
    (old,) = tmp_path.glob("a.jsonl.*.old")
    assert old.read_text() == JUDGMENT.replace('"m"', '"n"')
    write(path, JUDGMENT, "{\n")
    with JudgedFile(path) as file, pytest.raises(BareloopError, match=r"a\.jsonl, line 2 is not a judgment"):
        file.set_aside([])


def test_appending_overwrites_a_torn_line_and_keeps_a_whole_one_without_its_end(tmp_path):
    path = write(tmp_path / "a.jsonl", ANSWER[:-1])
    with JudgedFile(path) as file:
        file.append(answer(82))
    assert path.read_text() == ANSWER + as_line(answer(82))
    write(path, ANSWER, ANSWER[:50])
    with JudgedFile(path) as file:
        file.append(answer(82))
    assert path.read_text() == ANSWER + as_line(answer(82))


def test_only_one_process_writes_a_file(tmp_path):
    with JudgedFile(tmp_path / "a.jsonl"), pytest.raises(BareloopError, match="another process is writing"):
        JudgedFile(tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()  # nothing was written


def test_starting_over_renames_the_old_file_when_there_is_something_new(tmp_path):
    path = write(tmp_path / "a.jsonl", ANSWER)
    with JudgedFile(path, fresh=True):
        pass
    assert path.read_text() == ANSWER
    with JudgedFile(path, fresh=True) as file:
        file.append(answer(82))
        file.append(answer(83))
    assert [*read_answers(path)] == [82, 83]
    (old,) = tmp_path.glob("a.jsonl.*.old")
    assert old.read_text() == ANSWER


def test_a_sorted_file_has_one_line_for_each_question(tmp_path):
    texts = [as_line(answer(90)), as_line(answer(85, "old")), ANSWER, as_line(answer(85, "new"))]
    path = write(tmp_path / "a.jsonl", *texts)
    sort_file(path)
    assert path.read_text() == texts[2] + texts[3] + texts[0]
    before = path.stat().st_mtime_ns, path.stat().st_ino
    sort_file(path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


@pytest.mark.parametrize(
    ("winners", "winner"),
    [
        (("model_1", "model_1"), "model_1"),
        (("model_2", "model_2"), "model_2"),
        (("model_1", "model_2"), "tie"),
        (("tie", "model_1"), "tie"),
        (("tie", "tie"), "tie"),
        (("error", "model_1"), "error"),
        (("model_1", "error"), "error"),
    ],
)
def test_a_win_counts_only_in_both_orders(winners, winner):
    assert pair(*winners).winner == winner


def test_paths_are_those_of_fastchat(tmp_path):
    assert answers_path(tmp_path, "m") == tmp_path / "model_answer/m.jsonl"
    assert judgments_path(tmp_path, "gpt-4", "single") == tmp_path / "model_judgment/gpt-4_single.jsonl"
    assert judgments_path(tmp_path, "gpt-4", "pair", 2) == tmp_path / "model_judgment/gpt-4_pair.pass2.jsonl"
