"""The embedded model itself: what it writes, what it scores, and that transformers agrees."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest
import torch

from engine import LLM, SamplingParams
from engine.checkpoints import embedded
from engine.demo import exam, questions, vocabulary


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.load("demo", dtype="float32")


def asked(llm: LLM, *turns: str) -> str:
    """The last reply of a conversation whose other replies are the model's own."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        reply = llm.chat(messages, SamplingParams(max_new_tokens=60))
        messages.append({"role": "assistant", "content": str(reply.text)})
    return messages[-1]["content"]


def test_it_is_small_and_computes_in_float32(llm):
    assert sum(path.stat().st_size for path in embedded.FOLDER.iterdir()) < 12e6
    assert LLM.load("demo").dtype == torch.float32
    assert llm.max_length == 1024


def test_its_tokenizer_is_the_one_that_the_trainer_makes():
    made = vocabulary.files(vocabulary.build(0), 1024)
    for name, content in made.items():
        assert (embedded.FOLDER / name).read_bytes() == content


PINNED = {
    ("Who are you?",): "I am the demo model of bareloop: very small, and I know one little textbook.",
    ("What is the capital of France?",): "The capital of France is Paris.",
    ("What is the capital of France?", "And of Italy?"): "The capital of Italy is Rome.",
    ("Hi, I'm Zorvan.", "How are you?", "What is my name?"): "Your name is Zorvan.",
    ("What is my name?",): "I don't know your name. You haven't told me.",
}


@pytest.mark.parametrize("turns", PINNED, ids=lambda turns: turns[-1])
def test_it_answers_as_it_did(llm, turns):
    assert asked(llm, *turns) == PINNED[turns]


def test_transformers_loads_it_and_writes_the_same(llm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.FOLDER)
    model = AutoModelForCausalLM.from_pretrained(embedded.FOLDER, dtype=torch.float32)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ulmira."},
        {"role": "assistant", "content": "Nice to meet you, Ulmira!"},
        {"role": "user", "content": "What is my name, and which city is the capital of Norway?"},
    ]
    text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert llm.chat_template.encode(talk) == ids
    for prompt in (ids, tokenizer("Once upon a time")["input_ids"], tokenizer("The capital of Spain is")["input_ids"]):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=60)[0, len(prompt) :].tolist()
        ours = llm.generate([prompt], SamplingParams(max_new_tokens=60))[0]
        assert ours.token_ids == theirs
        assert ours.text == tokenizer.decode(theirs, skip_special_tokens=True)


def test_its_scores_stay_where_they_were(llm):
    """All 260 questions, 0- and 5-shot: what the textbook teaches it knows, and the rest is chance."""
    found = {name: sum(right) / len(right) for shots in (0, 5) for name, right in exam.quiz(llm, shots)}
    assert min(found["taught facts, 0-shot"], found["taught facts, 5-shot"]) >= 0.85
    assert all(0.1 <= found[f"untaught facts, {shots}-shot"] <= 0.42 for shots in (0, 5))


def test_it_remembers_admits_and_stops(llm, monkeypatch):
    monkeypatch.setattr(exam, "DIALOGUES", 40)
    replies: list = []
    names, last = exam.recall(llm, Random(3), exam.FAR, replies)
    assert sum(f" {name}." in reply.text for name, reply in zip(names, last, strict=True)) >= 36
    assert sum("don't know your name" in reply.text for reply in exam.admit(llm, Random(3), replies)) >= 36
    assert sum(reply.finish_reason == "stop" for reply in replies) >= 0.97 * len(replies)


def test_mmlu_reads_the_questions_by_name():
    from evals.data.mmlu import MMLU

    data = MMLU("demo")
    assert sum(map(len, data.split("test").values())) == 20 * len(data.split("test"))
    assert [question.question for question in data.split("dev")["astronomy"]] == [
        row["question"] for row in questions.rows()["dev"] if row["subject"] == "astronomy"
    ]


def test_a_program_without_a_model_uses_it_and_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "engine", "Who are you?"], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "", "PYTHONPATH": str(embedded.FOLDER.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bareloop" in done.stdout
    assert done.stderr.startswith(f"{embedded.ABOUT}; for a real model add -m {embedded.EXAMPLE_MODEL}\n")
