"""The textbook and the questions: what they hold, and what they keep from each other."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from engine.checkpoints import embedded
from engine.demo import dialogues, people, textbook, vocabulary
from engine.demo.exam import write
from engine.demo.facts import RELATIONS, SUBJECTS
from engine.demo.pages import BEGIN, END
from engine.demo.questions import is_taught, rows
from engine.demo.train import encode
from engine.demo.wordings import wording
from evals.data.question import MMLUQuestion
from evals.data.subjects import GROUPS
from evals.harness.prompts import mmlu_description, question_block


@pytest.fixture(scope="module")
def book() -> list[tuple[str, str]]:
    return [(kind, "".join(text for text, _ in page)) for kind, page in islice(textbook.pages(Random(5)), 2500)]


def test_the_facts_are_many_distinct_and_of_mmlu_s_subjects():
    assert len(SUBJECTS) >= 10
    assert set(SUBJECTS) <= {subject for listed in GROUPS.values() for subject in listed}
    assert sum(len(relation.taught) for relation in RELATIONS) == 312
    for relation in RELATIONS:
        pairs = relation.taught | relation.untaught
        assert len(set(pairs.values())) == len(pairs) == 16
        assert len({*relation.questions, *relation.unseen}) == 7


def test_one_seed_is_one_textbook(book):
    again = [(kind, "".join(text for text, _ in page)) for kind, page in islice(textbook.pages(Random(5)), 300)]
    assert again == book[:300]
    assert again != [(kind, "".join(t for t, _ in page)) for kind, page in islice(textbook.pages(Random(6)), 300)]


def test_every_page_begins_and_ends(book):
    shares = Counter[str]()
    for kind, text in book:
        shares[kind] += len(text)
        assert text.startswith(BEGIN)
        assert text.endswith(END)
        assert text.count(BEGIN) == 1
        assert text.count("<|user|>") == text.count("<|assistant|>")
    total = sum(shares.values())
    assert {kind: round(shares[kind] / total, 2) for kind in shares} == pytest.approx(
        {"drill": 0.1, "lesson": 0.126, "quiz": 0.468, "dialogue": 0.288, "story": 0.018}, abs=0.01
    )


def test_the_textbook_never_says_what_the_questions_keep(book):
    text = "\n".join(page for _, page in book)
    for relation in RELATIONS:
        for key in (*relation.taught, *relation.untaught):
            assert not any(textbook.sentence(wording, k=key) in text for wording in relation.unseen)
        for key, value in relation.untaught.items():
            for statement in relation.statements:
                assert textbook.sentence(statement, k=key, v=value) not in text
            assert not any(textbook.sentence(question, k=key) in text for question in relation.questions)
        for key in relation.taught:
            assert any(textbook.sentence(question, k=key) in text for question in relation.questions)


def test_unseen_names_are_never_in_the_textbook():
    random = Random(0)
    unseen = {people.name(random, unseen=True) for _ in range(3000)}
    seen = {people.name(random) for _ in range(30_000)}
    assert not unseen & seen
    assert len(unseen) > 1500
    assert len(seen) > 10_000


def test_letters_are_evenly_right(book):
    letters = Counter(line[-1] for kind, text in book if kind == "quiz" for line in text.replace(END, "").split("\n")
                      if line.startswith("Answer: "))  # fmt: skip
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 1.1 * min(letters.values())


def test_no_wording_is_one_of_the_questions():
    random = Random(0)
    for relation in RELATIONS:
        for key in relation.taught:
            unseen = {textbook.sentence(wording, k=key) for wording in relation.unseen}
            found = [wording(random, key) for _ in range(20)]
            assert not unseen & set(found)
            assert all(key.lower() in text.lower() for text in found)


@pytest.mark.parametrize("relisting", [0.0, 1.0])
def test_a_drill_s_letters_are_those_of_its_choices(relisting):
    asked = r"^Find (.+?)(?:|:|\? Answer:|\.\n(?:[A-D]\. .*\n)*Answer:) ([A-D])$"
    found = 0
    for seed in range(200):
        text = textbook.text_of(textbook.drill(Random(seed), textbook.Mix(relisting=relisting))).removeprefix(BEGIN)
        if text.startswith("A. "):
            choices = {value: letter for letter, value in re.findall(r"^([A-D])\. (.*)$", text, re.MULTILINE)}
            for value, letter in re.findall(asked, text, re.MULTILINE):
                assert choices[value] == letter
                found += 1
    assert found > 300


def test_a_quiz_of_a_line_asks_for_the_choice_of_its_letter():
    for seed in range(100):
        text = textbook.text_of(textbook.drill(Random(seed), textbook.Mix(repeating=0.0, asking=1.0)))
        question = text.removeprefix(BEGIN).split("\nA. ")[0]
        choices = dict(re.findall(r"^([A-D])\. (.*)$", text.partition("Answer:")[0], re.MULTILINE))
        assert choices[text.partition("Answer: ")[2][0]].lower() in question.lower()


def test_dialogues_recall_what_was_said_last_and_summaries_keep_their_order():
    talk = dialogues.summary([(people.NAME.clause, "Bo"), ("asked about {v}", "France")], 0.0, 0.0)
    assert "".join(text for text, _ in talk) == "The user is called Bo and asked about France."
    for seed in range(300):
        page = "".join(text for text, _ in dialogues.dialogue(Random(seed)))
        for turn in page.split("<|assistant|>")[1:]:
            reply = turn.partition(END)[0]
            if reply.startswith("Your name is "):
                assert page.count(reply.removeprefix("Your name is ").rstrip(".")) >= 2


def test_the_layout_is_mmlu_s():
    """The engine cannot know the evals, so the layout is written twice; here the two are held together."""
    for row in rows()["test"][::20]:
        question = MMLUQuestion(row["subject"], 0, row["question"], tuple(row["choices"]), row["answer"])
        assert textbook.heading(row["subject"]) == mmlu_description(row["subject"])
        assert textbook.block(row["question"], row["choices"]) == question_block(question)


def test_the_questions_are_those_of_the_project(tmp_path):
    write(str(tmp_path))
    for split in ("dev", "validation", "test"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (embedded.QUESTIONS / f"{split}.jsonl").read_bytes()


def test_a_quarter_is_never_taught_and_no_fact_is_asked_twice():
    splits = rows()
    for subject in SUBJECTS:
        own = [row for row in splits["test"] if row["subject"] == subject]
        assert [len(own), sum(is_taught(row) for row in own)] == [20, 15]
        assert sum(row["subject"] == subject for row in splits["dev"]) == 5
    everything = [json.dumps([row["subject"], row["question"]]) for listed in splits.values() for row in listed]
    assert len(set(everything)) == len(everything)


def test_every_token_has_the_weight_of_its_piece():
    tokenizer = vocabulary.build(0)
    page = [(BEGIN, 0.0), ("The capital of France is ", 0.25), ("Paris", 1.0), (".", 0.25), (END, 0.5)]
    ids, weights = encode(tokenizer, page)
    said = {tokenizer.id_to_token(number): weight for number, weight in zip(ids, weights, strict=True)}
    assert said["ĠParis"] == 1.0
    assert said["Ġcapital"] == said["."] == 0.25
    assert (said[BEGIN], said[END]) == (0.0, 0.5)
