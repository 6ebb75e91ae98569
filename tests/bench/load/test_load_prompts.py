"""Prompts: of the right length, seeded, different; and those of a file."""

from __future__ import annotations

import json

import pytest

from bench.load.prompts import WORDS, FilePrompts, RandomWords, measure_words
from engine.runtime.errors import BareloopError, UsageError
from tests.bench.load.fake_server import FakeServer, in_virtual_time

COSTS = {word: 1 + number % 3 for number, word in enumerate(WORDS)}


def tokens(text: str) -> int:
    return sum(COSTS[word] for word in text.split())


def test_prompts_have_exactly_the_tokens_and_are_all_different():
    prompts = RandomWords(50, seed=3, costs=COSTS)
    texts = [prompts.prompt(number) for number in range(-1, 40)]
    assert {tokens(text) for text in texts} == {50}
    assert len(set(texts)) == 41
    assert texts == [RandomWords(50, seed=3, costs=COSTS).prompt(number) for number in range(-1, 40)]
    assert texts[0] != RandomWords(50, seed=4, costs=COSTS).prompt(-1)


def test_a_shared_prefix_is_the_same_in_all_and_the_rest_is_not():
    prompts = RandomWords(50, shared=30, costs=COSTS)
    texts = [prompts.prompt(number).split() for number in range(20)]
    shared = 0
    while len({tuple(text[: shared + 1]) for text in texts}) == 1:
        shared += 1
    assert 30 <= tokens(" ".join(texts[0][:shared])) < 36  # the first further word may be the same by chance
    assert len({tuple(text) for text in texts}) == 20


def test_what_the_server_adds_is_taken_off_the_words():
    prompts = RandomWords(50, costs=COSTS)
    prompts.calibrate(58)  # it counted 58 tokens where 50 were meant
    assert tokens(prompts.prompt(0)) == 42
    short = RandomWords(5, costs=COSTS)
    short.calibrate(30)
    assert short.prompt(0) == WORDS[0]


def test_lengths_in_characters_are_corrected_by_the_servers_count():
    prompts = RandomWords(200)
    first = prompts.prompt(-1)
    prompts.calibrate(len(first.split()))  # a word is a token
    assert abs(len(prompts.prompt(0).split()) - 200) < 20


@pytest.mark.parametrize("text_field", ["prompt", "content", ""])
def test_words_are_counted_by_the_server_if_it_can(text_field):
    async def work():
        async with FakeServer(text_field=text_field).client() as client:
            return await measure_words(client)

    assert in_virtual_time(work) == (dict.fromkeys(WORDS, 1) if text_field else None)


def test_a_file_gives_its_prompts_in_turn(tmp_path):
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "b"}]
    path.write_text("\n".join(json.dumps(line) for line in ({"prompt": "a"}, {"messages": messages})) + "\n\n")
    prompts = FilePrompts(path, "chat")
    assert [prompts.prompt(number) for number in range(3)] == ["a", messages, "a"]
    with pytest.raises(UsageError, match="line 2 has messages; add --endpoint chat"):
        FilePrompts(path, "completions")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("\n", "has no prompts"),
        ("hello\n", "line 1 is not JSON: 'hello'"),
        ('{"prompt": "a"}\n{"prompt": 3}\n', 'line 2 has neither "prompt"'),
        ('["a"]', 'line 1 has neither "prompt"'),
    ],
)
def test_a_file_without_prompts_is_one_line(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BareloopError, match=message):
        FilePrompts(path, "chat")
