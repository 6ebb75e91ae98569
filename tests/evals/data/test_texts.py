"""Texts for perplexity: where they come from, and how they are cut into windows."""

from __future__ import annotations

from argparse import Namespace

import pytest

from engine.checkpoints import embedded
from engine.demo.pages import BEGIN, END
from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer
from evals.data.texts import CHARACTERS_PER_TOKEN, find_text, prefix_ids, split_windows, textbook


def test_windows_are_adjacent_and_each_starts_with_the_prefix():
    ids = list(range(10, 21))
    windows = split_windows(ids, 5, [0])
    assert windows == [[0, 10, 11, 12, 13], [0, 14, 15, 16, 17], [0, 18, 19, 20]]
    assert [number for window in windows for number in window[1:]] == ids
    assert split_windows(ids, 5, []) == [ids[:5], ids[5:10]]  # a single last token predicts nothing
    assert split_windows([0, 10, 11, 12], 3, [0]) == [[0, 10], [0, 11, 12]]  # the prefix is not repeated


def test_the_prefix_of_a_tokenizer(shared):
    assert prefix_ids(Tokenizer.load(embedded.FOLDER)) == [0]
    prefixes = {name: prefix_ids(Tokenizer.load(shared / "tokenizers" / name)) for name in ("llama-2", "gpt2")}
    assert prefixes == {"llama-2": [1], "gpt2": []}


def test_the_text_of_the_demo_model_is_reproducible_and_long_enough():
    options = Namespace(text=None, text_tokens=3000)
    source, text = find_text(options, embedded.NAME)
    assert (source, text) == textbook(CHARACTERS_PER_TOKEN * 3000)
    assert len(Tokenizer.load(embedded.FOLDER).encode(text)) > 3000
    assert textbook(2 * CHARACTERS_PER_TOKEN * 3000)[1].startswith(text)  # a longer text extends a shorter one
    assert text.startswith(BEGIN)
    assert text.endswith(END)


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"a\xff", "is not UTF-8 .* at byte 1"), (None, "No such file")],
)
def test_a_file_without_text_is_an_error_of_one_line(tmp_path, content, line):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(BareloopError, match=line):
        find_text(Namespace(text=str(tmp_path / "text"), text_tokens=10), "any/model")
