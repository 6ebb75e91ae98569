"""What is judged, with which prompts, and how verdicts are read: as FastChat's llm_judge does."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime.errors import BareloopError
from evals.data.mt_bench import JudgedQuestion, JudgePrompt, QuestionSet, load_question_set
from evals.judging.matches import (
    estimate,
    is_outside,
    make_judgment,
    pair_matches,
    read_score,
    read_winner,
    single_matches,
    verdict_text,
)
from evals.runs.judged import Answer, Judgment, PairJudgment, as_line


def answer(question: int, model: str, *turns: str) -> Answer:
    return Answer(question, model, (turns,))


@pytest.fixture(scope="module")
def mt_bench(shared):
    return load_question_set(str(shared / "data" / "mt_bench"))


@pytest.fixture(scope="module")
def prompts():
    """Prompts that show all that they may show."""
    turns = {False: "{question}|{answers}", True: "{question_1}|{question_2}|{answers}"}
    result = {}
    for name, kind, output_format in (("single", "single", "[[rating]]"), ("pair", "pairwise", "[[A]]")):
        for needs_reference in (False, True):
            for two in (False, True):
                answers = [f"answer{side}{turn}" for side in (("",) if kind == "single" else ("_a", "_b"))
                           for turn in (("_1", "_2") if two else ("",))]  # fmt: skip
                shown = [*answers, *(["ref_answer_1", *(["ref_answer_2"] if two else [])] if needs_reference else [])]
                template = turns[two].replace("{answers}", "|".join(f"{{{field}}}" for field in shown))
                version = "math-v1" if needs_reference else "v1" if kind == "single" else "v2"
                full = f"{name}-{version}{'-multi-turn' if two else ''}"
                result[full] = JudgePrompt(full, kind, "Be fair.", template, output_format)
    return result


QUESTIONS = (
    JudgedQuestion(81, "writing", ("Write.", "Rewrite.")),
    JudgedQuestion(111, "math", ("1+1?", "2+2?"), ("2", "4")),
    JudgedQuestion(200, "stem", ("Why?",)),
)
ANSWERS = {
    model: {
        81: answer(81, model, f"{model} 81.1", f"{model} 81.2"),
        111: answer(111, model, f"{model} 111.1", f"{model} 111.2"),
        200: answer(200, model, f"{model} 200.1"),
    }
    for model in ("a", "b")
}


@pytest.fixture
def question_set(prompts):
    return QuestionSet(QUESTIONS, prompts, "")


def test_every_turn_of_every_answer_is_judged_with_the_prompt_of_its_category(question_set):
    found = [(*match.key, match.prompt.name, match.user_prompts) for match in single_matches(question_set, ANSWERS)]
    assert found == [
        (81, "a", 1, "single-v1", ("Write.|a 81.1",)),
        (81, "b", 1, "single-v1", ("Write.|b 81.1",)),
        (81, "a", 2, "single-v1-multi-turn", ("Write.|Rewrite.|a 81.1|a 81.2",)),
        (81, "b", 2, "single-v1-multi-turn", ("Write.|Rewrite.|b 81.1|b 81.2",)),
        (111, "a", 1, "single-math-v1", ("1+1?|a 111.1|2",)),
        (111, "b", 1, "single-math-v1", ("1+1?|b 111.1|2",)),
        (111, "a", 2, "single-math-v1-multi-turn", ("1+1?|2+2?|a 111.1|a 111.2|2|4",)),
        (111, "b", 2, "single-math-v1-multi-turn", ("1+1?|2+2?|b 111.1|b 111.2|2|4",)),
        (200, "a", 1, "single-v1", ("Why?|a 200.1",)),
        (200, "b", 1, "single-v1", ("Why?|b 200.1",)),
    ]


def test_pairs_are_shown_in_both_orders(question_set):
    matches = pair_matches(question_set, ANSWERS, [("b", "a")])
    assert [(*match.key, match.prompt.name) for match in matches] == [
        (81, ("a", "b"), 1, "pair-v2"),
        (81, ("a", "b"), 2, "pair-v2-multi-turn"),
        (111, ("a", "b"), 1, "pair-math-v1"),
        (111, ("a", "b"), 2, "pair-math-v1-multi-turn"),
        (200, ("a", "b"), 1, "pair-v2"),
    ]
    assert matches[0].user_prompts == ("Write.|b 81.1|a 81.1", "Write.|a 81.1|b 81.1")
    assert matches[3].user_prompts == (
        "1+1?|2+2?|b 111.1|b 111.2|a 111.1|a 111.2|2|4",
        "1+1?|2+2?|a 111.1|a 111.2|b 111.1|b 111.2|2|4",
    )


def test_the_prompts_of_mt_bench_are_filled_as_fastchat_fills_them(mt_bench, shared):
    """Compared with plain replacement in the file's templates, for all 160 turns."""
    rows = [json.loads(line) for line in (shared / "data/mt_bench/judge_prompts.jsonl").read_text().splitlines()]
    templates = {row["name"]: row["prompt_template"] for row in rows}
    answers = {"m": {q.id: answer(q.id, "m", f"<{q.id}> {{answer}} {{0}} }}", "ERROR") for q in mt_bench.questions}}
    matches = single_matches(mt_bench, answers)
    assert len(matches) == 160
    for match in matches:
        question = match.question
        first, second = answers["m"][question.id].turns
        values = {"question": question.turns[0], "answer": first, "answer_1": first, "answer_2": second}
        values |= {"question_1": question.turns[0], "question_2": question.turns[1]}
        values |= {f"ref_answer_{number}": text for number, text in enumerate(question.references, 1)}
        parts = re.split(r"\{(\w+)\}", templates[match.prompt.name])
        expected = "".join(values[part] if index % 2 else part for index, part in enumerate(parts))
        assert match.user_prompts == (expected,)
        assert (("math" in match.prompt.name), match.prompt.name.endswith("multi-turn")) == (
            question.category in ("math", "reasoning", "coding"),
            match.turn == 2,
        )
    assert len(pair_matches(mt_bench, {"a": answers["m"], "b": answers["m"]}, [("a", "b")])) == 160


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s, a: (replace(s, questions=(replace(QUESTIONS[1], references=("2",)),)), a),
         r"question 111 \(math\) has no reference answer for turn 2, .* add it to reference_answer"),
        (lambda s, a: (s, {"a": {81: a["a"][81]}}), "a has no answer to turn 1 of question 111; answer all"),
        (lambda s, a: (s, {"a": a["a"] | {81: answer(81, "a", "one")}}), "a has no answer to turn 2 of question 81"),
        (lambda s, a: (replace(s, prompts={}), a), "has no prompt single-v1; "),
        (lambda s, a: (replace(s, prompts={"single-v1": replace(s.prompts["single-v1"], output_format="[[x,y]]")}), a),
         r"single-v1 has the output format '\[\[x,y\]\]'; only \[\[rating\]\]"),
        (lambda s, a: (replace(s, prompts={"single-v1": replace(s.prompts["single-v1"], template="{answer_9}")}), a),
         "judge's prompt single-v1 cannot be filled .'answer_9'.; its fields for turn 1 are question, a"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(question_set, change, line):
    with pytest.raises(BareloopError, match=line):
        single_matches(*change(question_set, ANSWERS))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Rating: [[6]]", 6),
        ("[[6.5]] and then [[7]]", 6.5),
        ("Rating: [7]", 7),
        ("I see [2] sources. Rating: [[8.]]", 8),
        ("[3] and [4]", 3),
        ("[[85]]", 85),
        ("[[0]]", 0),
        ("[[ 5 ]]", -1),
        ("[[7/10]]", -1),
        ("[[-3]]", -1),
        ("[[rating]]", -1),
        ("$ERROR$", -1),
        ("", -1),
        ("[[999999]]", 999999),
        ("[[1000000]]", -1),
        ("[[" + "9" * 400 + "]]", -1),
    ],
)
def test_scores_are_read_from_double_brackets_then_from_single_ones(text, score):
    assert read_score(text) == score
    assert is_outside(score) == (score in (85, 0, 999999))


@given(st.text(alphabet="[]0123456789. ab\n", max_size=40))
def test_a_score_is_that_of_a_plain_search(text):
    """Compared with a search that uses no regular expression."""

    def number_in(left: str, right: str) -> float | None:
        for start in range(len(text)):
            number, end, _ = text[start + len(left) :].partition(right)
            is_number = number[:1].isdigit() and set(number) <= set("0123456789.") and number.count(".") < 2
            if text.startswith(left, start) and end and is_number:
                return float(number)
        return None

    found = (number for number in (number_in("[[", "]]"), number_in("[", "]")) if number is not None)
    score = next(found, -1)
    assert read_score(text) == (score if score < 1e6 else -1)


@given(st.text(), st.floats(1, 10).map(lambda score: round(score, 1)), st.text())
def test_a_score_in_double_brackets_is_found_in_any_text(before, score, after):
    whole = int(score) if score == int(score) else score
    assert read_score(f"{before.replace('[', '(')}[[{whole}]]{after}") == score


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("B is shorter. [[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("[[B]] or [[A]]", "A"),  # as FastChat: A is looked for first
        ("[A]", "error"),
        ("[[D]]", "error"),
        ("$ERROR$", "error"),
    ],
)
def test_winners_are_read(text, winner):
    assert read_winner(text, "[[A]]") == winner


def test_an_unknown_output_format_is_refused():
    with pytest.raises(BareloopError, match=r"output format '\[\[rating_a,rating_b\]\]' has no winner"):
        read_winner("[[5,6]]", "[[rating_a,rating_b]]")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<think>[[2]]?</think>Rating: [[7]]", "Rating: [[7]]"),
        ("[[2]]?</think>Rating: [[7]]", "Rating: [[7]]"),  # the template has written the opening tag
        ("<think>[[2]] and so on", ""),
        ("It says <think>so</think>. [[3]]", "It says <think>so</think>. [[3]]"),
        ("[[4]]", "[[4]]"),
    ],
)
def test_a_verdict_is_not_read_from_the_reasoning(text, verdict):
    assert verdict_text(text) == verdict


def test_judgments_are_the_lines_of_fastchat(question_set):
    match = single_matches(question_set, ANSWERS)[5]
    judgment = make_judgment(match, "gpt-4", ["Fine: [[9.5]]"], 12.5)
    assert judgment == Judgment(
        111, "b", "gpt-4", "single-math-v1", "1+1?|b 111.1|2", "Fine: [[9.5]]", 9.5, 1, 12.5
    )  # fmt: skip
    assert as_line(judgment) == (
        '{"question_id": 111, "model": "b", "judge": ["gpt-4", "single-math-v1"], "user_prompt": "1+1?|b 111.1|2", '
        '"judgment": "Fine: [[9.5]]", "score": 9.5, "turn": 1, "tstamp": 12.5}\n'
    )
    assert '"score": -1,' in as_line(make_judgment(match, "gpt-4", ["<think>[[9]]"], 0.0))
    assert '"score": 6,' in as_line(make_judgment(match, "gpt-4", ["[[6]]"], 0.0))


@pytest.mark.parametrize(
    ("texts", "winners", "winner"),
    [
        (("[[A]]", "[[B]]"), ("model_1", "model_1"), "model_1"),
        (("[[B]]", "[[A]]"), ("model_2", "model_2"), "model_2"),
        (("[[A]]", "[[A]]"), ("model_1", "model_2"), "tie"),  # the first place was preferred
        (("[[C]]", "[[C]]"), ("tie", "tie"), "tie"),
        (("[[A]]", "?"), ("model_1", "error"), "error"),
    ],
)
def test_a_pair_is_won_where_both_orders_agree(question_set, texts, winners, winner):
    match = pair_matches(question_set, ANSWERS, [("a", "b")])[0]
    judgment = make_judgment(match, "gpt-4", texts, 1.0)
    assert isinstance(judgment, PairJudgment)
    assert (judgment.winners, judgment.winner, judgment.judgments) == (winners, winner, texts)
    assert judgment.user_prompts == match.user_prompts


def test_the_cost_is_estimated(mt_bench):
    answers = {"m": {q.id: answer(q.id, "m", "word " * 200, "word " * 200) for q in mt_bench.questions}}
    count, prompts, judgments = estimate((match, 0) for match in single_matches(mt_bench, answers))
    assert count == 160
    assert 400 < prompts / count < 1_500
    assert judgments == 300 * count
    pairs = pair_matches(mt_bench, {"a": answers["m"], "b": answers["m"]}, [("a", "b")])
    both, second = ([(match, order) for match in pairs for order in orders] for orders in ((0, 1), (1,)))
    assert [estimate(games)[0] for games in (both, second)] == [320, 160]
    assert estimate(both)[1] == pytest.approx(2 * estimate(second)[1], abs=1)
