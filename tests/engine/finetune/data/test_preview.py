"""The preview marks learned tokens, with colour and without."""

from __future__ import annotations

import io

from rich.console import Console

from engine.finetune.data import Dataset, Example, preview


def dataset(llm, *pairs):
    examples = []
    for prompt, answer in pairs:
        left, right = (llm.tokenizer.encode(text, add_special_tokens=False) for text in (prompt, answer))
        examples.append(Example([*left, *right], [False] * len(left) + [True] * len(right)))
    return Dataset(examples, [], [])


def test_learned_tokens_are_between_marks_and_control_characters_are_visible(load_checkpoint):
    llm = load_checkpoint("gpt2")
    data = dataset(llm, ("Q: a\tb\nA:", " [bold]é鳥<|endoftext|>"), *[("x", " y")] * 5)
    lines = str(preview(data, llm.tokenizer)).splitlines()
    tokens = len(data.train[0].ids)
    assert lines[0].startswith(f"example 1: {tokens} tokens, ")
    assert lines[1:] == [
        "Q: a\\tb\\nA:« [bold]é鳥<|endoftext|>»",
        "example 2: 2 tokens, 1 of them learned",
        "x« y»",
        "example 3: 2 tokens, 1 of them learned",
        "x« y»",
    ]


def test_a_terminal_shows_colours_and_a_file_the_marks(load_checkpoint):
    llm = load_checkpoint("llama-2")
    shown = preview(dataset(llm, ("Who?", "A [red]bird")), llm.tokenizer, count=1)
    for options, marks in (
        ({"force_terminal": True, "color_system": "truecolor"}, 0),
        ({}, 2),
        ({"no_color": True}, 2),
    ):
        file = io.StringIO()
        Console(file=file, width=100, **options).print(shown)
        text = file.getvalue()
        assert ("\x1b[" in text) == (marks == 0)
        assert text.count("«") + text.count("»") == marks
        assert "A [red]bird" in text


def test_long_prompts_lose_their_middle(load_checkpoint):
    llm = load_checkpoint("gpt2")
    text = str(preview(dataset(llm, ("begin " + "word " * 1000 + "end", " x")), llm.tokenizer))
    assert len(text) < 600
    assert "begin word" in text and "word end« x»" in text and "4,609 characters" in text


def test_it_is_empty_without_examples(load_checkpoint):
    llm = load_checkpoint("gpt2")
    assert str(preview(Dataset([], [], []), llm.tokenizer)) == ""
