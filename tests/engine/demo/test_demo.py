"""The embedded model: its files, what it generates, how it scores, and that transformers gives the same."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch

import engine.__main__
from engine import LLM, SamplingParams
from engine.checkpoints import embedded
from engine.cli.parser import run
from engine.demo import exam, questions, train, vocabulary


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.load("demo", dtype="float32")


def last_reply(llm: LLM, *turns: str) -> str:
    """The last reply of a conversation whose earlier replies are the model's, too."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        reply = llm.chat(messages, SamplingParams(max_new_tokens=60))
        messages.append({"role": "assistant", "content": str(reply.text)})
    return messages[-1]["content"]


def test_the_demo_is_small_and_computes_in_float32(llm):
    assert sum(path.stat().st_size for path in embedded.FOLDER.iterdir()) < 12e6
    assert LLM.load("demo").dtype == torch.float32
    assert llm.max_length == 1024


def test_its_tokenizer_and_config_are_those_that_the_trainer_writes(tokenizer):
    for name, content in vocabulary.files(tokenizer, train.WINDOW).items():
        assert (embedded.FOLDER / name).read_bytes() == content
    config = json.loads((embedded.FOLDER / "config.json").read_text())
    assert config == {**train.CONFIG, "vocab_size": tokenizer.get_vocab_size()}


REPLIES = {
    ("Who are you?",): "I am the demo model of bareloop: very small, and I know one little textbook.",
    ("What is the capital of France?",): "The capital of France is Paris.",
    ("What is the capital of France?", "And of Italy?"): "The capital of Italy is Rome.",
    ("Hi, I'm Zorvan.", "How are you?", "What is my name?"): "Your name is Zorvan.",
    ("What is my name?",): "I don't know your name. You haven't told me.",
}


@pytest.mark.parametrize("turns", REPLIES, ids=lambda turns: turns[-1])
def test_its_replies_do_not_change(llm, turns):
    assert last_reply(llm, *turns) == REPLIES[turns]


def test_transformers_loads_it_and_generates_the_same(llm):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.FOLDER)
    model = AutoModelForCausalLM.from_pretrained(embedded.FOLDER, dtype=torch.float32)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ulmira."},
        {"role": "assistant", "content": "Nice to meet you, Ulmira!"},
        {"role": "user", "content": "What is my name, and which city is the capital of Norway?"},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert llm.chat_template.encode(messages) == ids
    for prompt in (ids, tokenizer("Once upon a time")["input_ids"], tokenizer("The capital of Spain is")["input_ids"]):
        generated = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=60)[0]
        expected = generated[len(prompt) :].tolist()
        actual = llm.generate([prompt], SamplingParams(max_new_tokens=60))[0]
        assert actual.token_ids == expected
        assert actual.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_it_knows_the_taught_facts_and_guesses_the_untaught_ones(llm):
    """All 260 questions, 0- and 5-shot. Untaught facts are at chance."""
    accuracy = {name: sum(correct) / len(correct) for shots in (0, 5) for name, correct in exam.quiz(llm, shots)}
    assert min(accuracy["taught facts, 0-shot"], accuracy["taught facts, 5-shot"]) >= 0.85
    assert all(0.1 <= accuracy[f"untaught facts, {shots}-shot"] <= 0.42 for shots in (0, 5))


def test_it_recalls_names_says_when_it_was_told_none_and_ends_its_replies(llm, monkeypatch):
    monkeypatch.setattr(exam, "DIALOGUES", 40)
    replies: list = []
    names, last = exam.recall(llm, Random(3), exam.MAX_TURNS, replies)
    assert sum(f" {name}." in reply.text for name, reply in zip(names, last, strict=True)) >= 36
    assert sum("don't know your name" in reply.text for reply in exam.recall_nothing(llm, Random(3), replies)) >= 36
    assert sum(reply.finish_reason == "stop" for reply in replies) >= 0.97 * len(replies)


def test_mmlu_reads_the_questions_by_name():
    from evals.data.mmlu import MMLU

    data = MMLU("demo")
    assert sum(map(len, data.split("test").values())) == 20 * len(data.split("test"))
    assert [question.question for question in data.split("dev")["astronomy"]] == [
        row["question"] for row in questions.rows()["dev"] if row["subject"] == "astronomy"
    ]


def test_without_a_model_flag_the_demo_answers_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)  # SmolLM2 is not installed
    with pytest.raises(SystemExit) as caught:
        run(engine.__main__.parser(), engine.__main__.main, ["Who are you?"])
    output = capsys.readouterr()
    assert caught.value.code == 0
    assert "bareloop" in output.out
    assert output.err.startswith(f"{embedded.ABOUT[embedded.NAME]}\n")
