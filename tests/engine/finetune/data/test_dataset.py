"""From files to examples: what is learned, cut, held out and refused."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import LLM
from engine.finetune.data import load_data
from engine.finetune.data.rows import parse_row
from engine.runtime.errors import BareloopError, UsageError
from evals import squad

TOKENIZERS = (
    "gpt-neox-pythia",
    "gpt2",
    "llama-2",
    "llama-3.2",
    "mistral-7b-instruct-v0.2",
    "olmo-2",
    "phi-2",
    "qwen2.5-0.5b-instruct",
)
OPTIONS = {"max_length": None, "limit": None, "held_out": 0}
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


def load(path, llm, **options):
    return load_data(str(path), llm, **(OPTIONS | options))


def learned_text(llm, example):
    ids = [token for token, flag in zip(example.ids, example.learned, strict=True) if flag]
    return b"".join(map(llm.tokenizer.token_bytes, ids)).decode()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompt_and_completion_are_encoded_as_the_engine_asks_and_answers(load_checkpoint, write, name):
    llm = load_checkpoint(name)
    prompt, completion = "Question: who?\nAnswer:", " the Denver Broncos"
    (example,) = load(write("a.jsonl", [{"prompt": prompt, "completion": completion}]), llm).train
    eos = llm.eos_token_ids[0]
    assert list(example.ids) == [*llm.tokenizer.encode(prompt + completion), eos]
    asked = llm.tokenizer.encode(prompt)
    assert list(example.ids[: len(asked)]) == asked
    assert list(example.learned) == [False] * len(asked) + [True] * (len(example.ids) - len(asked))
    assert learned_text(llm, example).startswith(completion)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bos_is_there_once_where_the_tokenizer_has_it(load_checkpoint, write, name):
    llm = load_checkpoint(name)
    prefix = llm.tokenizer.encode("")
    rows = [{"prompt": "Who is it?", "completion": " Nobody"}, {"text": "Who is it? Nobody"}]
    for example in load(write("a.jsonl", rows), llm).train:
        assert list(example.ids[: len(prefix)]) == prefix
        assert not set(prefix) & set(example.ids[len(prefix) : -1])
        assert not example.learned[0]
        assert example.ids[-1] == llm.eos_token_ids[0] and example.learned[-1]
        assert llm.eos_token_ids[0] not in example.ids[len(prefix) : -1]


def test_a_completion_that_would_share_a_token_with_the_prompt_keeps_the_prompts_ids(load_checkpoint, write):
    for name in ("gpt2", "llama-2"):
        llm = load_checkpoint(name)
        (example,) = load(write("a.jsonl", [{"prompt": "The answ", "completion": "er is 4"}]), llm).train
        asked = llm.tokenizer.encode("The answ")
        assert list(example.ids[: len(asked)]) == asked
        assert learned_text(llm, example).removesuffix(llm.tokenizer.special_tokens["eos_token"]) == "er is 4"


def test_squads_prompts_and_answers_are_those_of_the_benchmark(load_checkpoint, shared):
    llm = load_checkpoint("gpt2")
    data = load(f"{shared / 'data/squad'}:validation[5:25]", llm)
    with gzip.open(shared / "data/squad/validation.jsonl.gz", "rt") as file:
        docs = [json.loads(line) for line in file][5:25]
    assert len(data.train) == 20
    for doc, example in zip(docs, data.train, strict=True):
        question = squad.parse("", doc)
        ids = llm.tokenizer.encode(question.prompt)
        assert list(example.ids[: len(ids)]) == ids
        assert sum(example.learned) == len(example.ids) - len(ids)
        assert learned_text(llm, example) == f" {doc['answers']['text'][0]}<|endoftext|>"


def test_a_text_is_learned_but_its_first_token(load_checkpoint, write):
    llm = load_checkpoint("llama-3.2")
    (example,) = load(write("a.jsonl", [{"text": "One two"}]), llm).train
    assert list(example.ids) == [*llm.tokenizer.encode("One two"), llm.eos_token_ids[0]]
    assert list(example.learned) == [False] + [True] * (len(example.ids) - 1)


@given(st.integers(1, 60), st.integers(2, 20))
def test_pieces_of_a_long_text_learn_every_token_but_the_first_once(load_checkpoint, tmp_path_factory, count, length):
    llm = load_checkpoint("gpt2")
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    path.write_text(json.dumps({"text": " a" * count}))
    data = load(path, llm, max_length=length)
    whole = [*llm.tokenizer.encode(" a" * count), llm.eos_token_ids[0]]
    learned = [t for e in data.train for t, flag in zip(e.ids, e.learned, strict=True) if flag]
    assert learned == whole[1:]
    assert all(2 <= len(example.ids) <= length for example in data.train)
    assert bool(data.notes) == (len(whole) > length)


def test_long_prompts_are_cut_or_skipped_and_counted(load_checkpoint, write):
    llm = load_checkpoint("gpt2")
    rows = [{"prompt": " p" * n, "completion": " c" * 5} for n in (3, 8, 10, 30)]
    data = load(write("a.jsonl", rows), llm, max_length=10)
    assert [sum(example.learned) for example in data.train] == [6, 2]
    assert data.notes == ["1 of 4 examples were cut to 10 tokens, 2 skipped, as nothing learned remains"]
    with pytest.raises(BareloopError, match="no example is left to train on"):
        load(write("b.jsonl", rows[3:]), llm, max_length=10)


def test_rows_of_every_kind_may_be_in_one_file(load_checkpoint, write):
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct")
    rows = [
        {"text": "One"},
        {"messages": CHAT},
        {"prompt": "Two", "completion": " three"},
        {
            "prompt": [*CHAT, {"role": "user", "content": "And?"}],
            "completion": [{"role": "assistant", "content": "You."}],
        },
    ]
    data = load(write("a.jsonl", rows), llm)
    endings = ["One<|im_end|>"[3:], "Me.<|im_end|>", " three<|im_end|>", "You.<|im_end|>"]
    assert [learned_text(llm, example) for example in data.train] == endings
    unmasked = load(write("a.jsonl", rows), llm, mask_prompt=False)
    assert all(list(e.learned) == [False] + [True] * (len(e.ids) - 1) for e in unmasked.train)


def test_held_out_rows_are_never_trained_on(load_checkpoint, write):
    llm = load_checkpoint("gpt2")
    path = write("a.jsonl", [{"text": f"number {number}" * 30} for number in range(100)])
    data = load(path, llm, held_out=None, max_length=20)
    train, held = ({llm.tokenizer.decode(e.ids)[:9] for e in part} for part in (data.train, data.held_out))
    assert len({row for row in held if row.startswith("number")}) == 5
    other = load(path, llm, held_out=None, max_length=20, seed=1)
    assert other.held_out != data.held_out
    assert load(path, llm, held_out=None, max_length=20) == data
    assert not {row for row in train & held if row.startswith("number")}


@pytest.mark.parametrize(("count", "expected"), [(19, 0), (20, 1), (100, 5), (6000, 200)])
def test_one_row_in_20_is_held_out_by_default(load_checkpoint, write, count, expected):
    data = load(write("a.jsonl", [{"text": "a b"}] * count), load_checkpoint("gpt2"), held_out=None)
    assert (len(data.train), len(data.held_out)) == (count - expected, expected)


def test_valid_is_held_out_if_a_folder_has_it(load_checkpoint, write, tmp_path):
    write("train.jsonl", [{"text": "train it"}] * 30)
    write("valid.jsonl", [{"text": "test it"}] * 300)
    llm = load_checkpoint("gpt2")
    data = load(tmp_path, llm, held_out=None)
    assert (len(data.train), len(data.held_out)) == (30, 200)
    assert {llm.tokenizer.decode(example.ids) for example in data.held_out} == {"test it"}
    assert data.notes == ["200 of the 300 rows of valid are held out"]
    assert len(load(tmp_path, llm, held_out=7).held_out) == 7
    assert load(tmp_path, llm, held_out=0).held_out == []


def test_a_limit_draws_rows_by_the_seed_and_keeps_their_order(load_checkpoint, write):
    llm = load_checkpoint("gpt2")
    path = write("a.jsonl", [{"text": f"n {number}"} for number in range(100)])
    numbers = [int(llm.tokenizer.decode(e.ids).split()[1]) for e in load(path, llm, limit=10).train]
    assert len(numbers) == 10 and numbers == sorted(numbers) and numbers != list(range(10))
    assert load(path, llm, limit=10, seed=1).train != load(path, llm, limit=10).train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "--max-length 1: use 2 to 4,096"),
        ({"max_length": 5000}, "--max-length 5000: use 2 to 4,096"),
        ({"limit": 0}, "--limit 0: use 1 or more"),
        ({"held_out": -1}, "--held-out -1: use 0 or more"),
        ({"held_out": 3}, "--held-out 3: there are 3 rows; leave at least one"),
    ],
)
def test_settings_out_of_range_are_refused(load_checkpoint, write, options, message):
    with pytest.raises(UsageError, match=message):
        load(write("a.jsonl", [{"text": "a b"}] * 3), load_checkpoint("gpt2"), **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "a JSON int, not an object"),
        ({}, "it has nothing; a row has messages"),
        ({"conversations": []}, "write ShareGPT's conversations as messages"),
        ({"instruction": "x", "output": "y"}, "write Alpaca's instruction and input as prompt"),
        ({"prompt": "x"}, "it has 'prompt'; a row has"),
        ({"text": 3}, "text is a int, not text"),
        ({"text": " \n"}, "text is empty"),
        ({"text": "a \ud800 b"}, "lone surrogate"),
        ({"prompt": "", "completion": "x"}, "prompt is empty"),
        ({"prompt": "x", "completion": CHAT}, "one of prompt and completion is a list"),
        ({"prompt": CHAT, "completion": CHAT[:1]}, "no assistant message"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "x"}, "messages is a str, not a list"),
        ({"messages": [3]}, "message 1 of messages is a int"),
        ({"messages": CHAT[:1]}, "no assistant message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "has the role 'tool'; use one of system, user, assistant"),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": ""}]},
            "the content of message 2 of messages is empty",
        ),
        ({"messages": [CHAT[0], {"role": "assistant"}]}, "the content of message 2 of messages is a NoneType"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{}]}]}, "calls a tool"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 of messages has an image"),
        ({"messages": [CHAT[0], CHAT[1] | {"weight": 0}]}, "have weight 0"),
        ({"title": "t", "context": "c", "question": "q", "answers": {"text": []}}, "answers has no text"),
        ({"title": "t", "context": 3, "question": "q", "answers": {"text": ["a"]}}, "context is a int"),
    ],
)
def test_a_bad_row_is_refused_with_its_file_and_line(write, load_checkpoint, row, message):
    path = write("a.jsonl", [{"text": "good row"}, row])
    with pytest.raises(BareloopError) as error:
        load(path, load_checkpoint("gpt2"))
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert message in str(error.value)


def test_what_a_template_rejects_is_refused_with_its_line(write, load_checkpoint):
    llm = load_checkpoint("llama-2", "chujiezheng-llama-2-chat")
    path = write("a.jsonl", [{"messages": CHAT}, {"messages": [CHAT[0], *CHAT]}])
    with pytest.raises(BareloopError, match=r"line 2: the chat template rejects these messages: .*alternate"):
        load(path, llm)


def test_tools_are_left_out_with_a_note_and_a_missing_eos_has_one(write, load_checkpoint):
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct")
    llm.eos_token_ids = ()
    data = load(write("a.jsonl", [{"messages": CHAT, "tools": [{"type": "function"}]}]), llm)
    assert data.notes[0] == "the tools of 1 conversations are left out"
    assert "cannot learn to stop" in data.notes[1]
    assert learned_text(llm, data.train[0]) == "Me.<|im_end|>"


def test_messages_need_a_template(write, shared):
    llm = LLM.load(shared / "checkpoints/gpt2-capp-235k")
    with pytest.raises(BareloopError, match="messages need a template: use an instruct model, or rows of prompt"):
        load(write("a.jsonl", [{"messages": CHAT}]), llm)


def test_the_demo_model_is_asked_as_its_examples_say(write):
    llm = LLM.load("demo")
    (example,) = load(write("a.jsonl", [{"messages": CHAT}]), llm).train
    first = example.learned.index(True)
    assert list(example.ids[:first]) == llm.chat_template.encode(CHAT[:1])
    assert learned_text(llm, example).startswith("Me.")
    assert example.ids[-1] in llm.eos_token_ids
    assert all(example.learned[first:])


def test_a_row_of_parts_and_of_missing_columns_is_read():
    """As parquet has them."""
    parts = [{"type": "text", "text": "Hi"}]
    row = {"text": None, "messages": [{"role": "user", "content": parts, "name": None}, CHAT[1]]}
    assert parse_row(row, "here") == parse_row({"messages": [{"role": "user", "content": parts}, CHAT[1]]}, "here")


def test_replies_that_are_dropped_from_a_conversation_are_counted(write, load_checkpoint):
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct")
    rows = [{"messages": [{"role": "assistant", "content": "Welcome!"}, *CHAT]}, {"messages": CHAT}]
    data = load(write("a.jsonl", rows), llm)
    assert [learned_text(llm, example) for example in data.train] == ["Me.<|im_end|>"] * 2
    (note,) = data.notes
    assert note.startswith("1 replies of other conversations are only context")


def test_an_example_takes_five_bytes_a_token(write, load_checkpoint):
    (example,) = load(write("a.jsonl", [{"text": "a word " * 50}]), load_checkpoint("gpt2")).train
    assert memoryview(example.ids).nbytes == 4 * len(example.ids)
    assert memoryview(example.learned).nbytes == len(example.ids)
