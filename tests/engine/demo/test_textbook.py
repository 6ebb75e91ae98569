"""The textbook and the test questions: their content, and what only one of them may have."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from engine.checkpoints import embedded
from engine.demo import dialogues, people, textbook
from engine.demo.exam import write_questions
from engine.demo.facts import RELATIONS, SUBJECTS
from engine.demo.pages import BEGIN, END
from engine.demo.questions import is_taught, rows
from engine.demo.train import encode
from engine.demo.wordings import nonsense_question
from evals.data.question import MMLUQuestion
from evals.data.subjects import GROUPS
from evals.harness.prompts import mmlu_description, question_block


def texts(seed: int, count: int) -> list[tuple[str, str]]:
    """The first pages of the textbook: (kind, text)."""
    return [(kind, textbook.text_of(page)) for kind, page in islice(textbook.pages(Random(seed)), count)]


@pytest.fixture(scope="module")
def book() -> list[tuple[str, str]]:
    return texts(5, 2500)


def test_the_312_facts_are_distinct_and_have_mmlu_s_subjects():
    assert len(SUBJECTS) >= 10
    assert set(SUBJECTS) <= {subject for group in GROUPS.values() for subject in group}
    assert sum(len(relation.taught) for relation in RELATIONS) == 312
    for relation in RELATIONS:
        pairs = relation.taught | relation.untaught
        assert len(set(pairs.values())) == len(pairs) == 16
        assert len({*relation.questions, *relation.unseen}) == 7


def test_the_same_seed_gives_the_same_textbook(book):
    assert texts(5, 300) == book[:300]
    assert texts(6, 300) != book[:300]


def test_every_page_begins_and_ends_and_every_kind_has_its_share(book):
    lengths = Counter[str]()
    for kind, text in book:
        lengths[kind] += len(text)
        assert text.startswith(BEGIN)
        assert text.endswith(END)
        assert text.count(BEGIN) == 1
        assert text.count("<|user|>") == text.count("<|assistant|>")
    total = sum(lengths.values())
    assert {kind: round(length / total, 2) for kind, length in lengths.items()} == pytest.approx(
        {"drill": 0.1, "lesson": 0.126, "quiz": 0.468, "dialogue": 0.288, "story": 0.018}, abs=0.01
    )


def test_unseen_wordings_and_untaught_facts_are_not_in_the_textbook(book):
    text = "\n".join(page for _, page in book)
    for relation in RELATIONS:
        for key in (*relation.taught, *relation.untaught):
            assert not any(textbook.fill_in(template, k=key) in text for template in relation.unseen)
        for key, value in relation.untaught.items():
            for statement in relation.statements:
                assert textbook.fill_in(statement, k=key, v=value) not in text
            assert not any(textbook.fill_in(question, k=key) in text for question in relation.questions)
        for key in relation.taught:
            assert any(textbook.fill_in(question, k=key) in text for question in relation.questions)


def test_unseen_names_are_never_in_the_textbook():
    random = Random(0)
    unseen = {people.random_name(random, unseen=True) for _ in range(3000)}
    seen = {people.random_name(random) for _ in range(30_000)}
    assert not unseen & seen
    assert len(unseen) > 1500
    assert len(seen) > 10_000


def test_each_letter_is_the_answer_equally_often(book):
    letters = Counter(line[-1] for kind, text in book if kind == "quiz" for line in text.replace(END, "").split("\n")
                      if line.startswith("Answer: "))  # fmt: skip
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 1.1 * min(letters.values())


def test_nonsense_questions_have_their_key_and_are_no_test_questions():
    random = Random(0)
    for relation in RELATIONS:
        for key in relation.taught:
            unseen = {textbook.fill_in(template, k=key) for template in relation.unseen}
            generated = [nonsense_question(random, key) for _ in range(20)]
            assert not unseen & set(generated)
            assert all(key.lower() in text.lower() for text in generated)


@pytest.mark.parametrize("relisted", [0.0, 1.0])
def test_letter_drills_have_the_letters_of_their_choices(relisted):
    question = r"^Find (.+?)(?:|:|\? Answer:|\.\n(?:[A-D]\. .*\n)*Answer:) ([A-D])$"
    found = 0
    for seed in range(200):
        text = textbook.text_of(textbook.drill(Random(seed), textbook.Mix(relisted=relisted))).removeprefix(BEGIN)
        if text.startswith("A. "):
            choices = {value: letter for letter, value in re.findall(r"^([A-D])\. (.*)$", text, re.MULTILINE)}
            for value, letter in re.findall(question, text, re.MULTILINE):
                assert choices[value] == letter
                found += 1
    assert found > 300


def test_mini_quizzes_ask_for_the_choice_of_their_letter():
    for seed in range(100):
        text = textbook.text_of(textbook.drill(Random(seed), textbook.Mix(repetitions=0.0, mini_quizzes=1.0)))
        question = text.removeprefix(BEGIN).split("\nA. ")[0]
        choices = dict(re.findall(r"^([A-D])\. (.*)$", text.partition("Answer:")[0], re.MULTILINE))
        assert choices[text.partition("Answer: ")[2][0]].lower() in question.lower()


def test_dialogues_recall_names_that_were_stated_and_summaries_keep_the_order():
    summary = dialogues.summary([(people.NAME.clause, "Bo"), ("asked about {v}", "France")], 0.0, 0.0)
    assert textbook.text_of(summary) == "The user is called Bo and asked about France."
    for seed in range(300):
        page = textbook.text_of(dialogues.dialogue(Random(seed)))
        for turn in page.split("<|assistant|>")[1:]:
            reply = turn.partition(END)[0]
            if reply.startswith("Your name is "):
                assert page.count(reply.removeprefix("Your name is ").rstrip(".")) >= 2


def test_questions_have_the_layout_of_the_mmlu_benchmark():
    """`engine` must not import `evals`, so the layout is implemented twice."""
    for row in rows()["test"][::20]:
        question = MMLUQuestion(row["subject"], 0, row["question"], tuple(row["choices"]), row["answer"])
        assert textbook.heading(row["subject"]) == mmlu_description(row["subject"])
        assert textbook.question_block(row["question"], row["choices"]) == question_block(question)


def test_the_packaged_questions_are_those_that_the_exam_writes(tmp_path):
    write_questions(str(tmp_path))
    for split in ("dev", "validation", "test"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (embedded.QUESTIONS / f"{split}.jsonl").read_bytes()


def test_a_quarter_of_the_test_questions_is_untaught_and_no_question_occurs_twice():
    splits = rows()
    for subject in SUBJECTS:
        test_rows = [row for row in splits["test"] if row["subject"] == subject]
        assert [len(test_rows), sum(is_taught(row) for row in test_rows)] == [20, 15]
        assert sum(row["subject"] == subject for row in splits["dev"]) == 5
    all_questions = [json.dumps([row["subject"], row["question"]]) for split in splits.values() for row in split]
    assert len(set(all_questions)) == len(all_questions)


def test_every_token_has_the_weight_of_its_piece_of_text(tokenizer):
    page = [(BEGIN, 0.0), ("The capital of France is ", 0.25), ("Paris", 1.0), (".", 0.25), (END, 0.5)]
    ids, weights = encode(tokenizer, page)
    weight_of = {tokenizer.id_to_token(number): weight for number, weight in zip(ids, weights, strict=True)}
    assert weight_of["ĠParis"] == 1.0
    assert weight_of["Ġcapital"] == weight_of["."] == 0.25
    assert (weight_of[BEGIN], weight_of[END]) == (0.0, 0.5)
