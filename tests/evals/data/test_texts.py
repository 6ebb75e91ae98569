"""Where texts come from, and how they are cut into windows."""

from __future__ import annotations

from argparse import Namespace

import pytest

from engine.checkpoints import embedded
from engine.demo.pages import BEGIN, END
from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer
from evals.data.texts import TOKEN, beginning, cut, find_text, textbook


def test_windows_lie_end_to_end_and_each_begins_as_a_text_does():
    ids = list(range(10, 21))
    windows = cut(ids, 5, [0])
    assert windows == [[0, 10, 11, 12, 13], [0, 14, 15, 16, 17], [0, 18, 19, 20]]
    assert [number for window in windows for number in window[1:]] == ids
    assert cut(ids, 5, []) == [ids[:5], ids[5:10]]  # a last token alone predicts nothing
    assert cut([0, 10, 11, 12], 3, [0]) == [[0, 10], [0, 11, 12]]  # never two of them


def test_what_a_tokenizer_begins_a_text_with(shared):
    assert beginning(Tokenizer.load(embedded.FOLDER)) == [0]
    begins = {name: beginning(Tokenizer.load(shared / "tokenizers" / name)) for name in ("llama-2", "gpt2")}
    assert begins == {"llama-2": [1], "gpt2": []}


def test_the_demo_s_text_is_the_same_every_time_and_long_enough():
    options = Namespace(text=None, text_tokens=3000)
    source, text = find_text(options, embedded.NAME)
    assert (source, text) == textbook(TOKEN * 3000)
    assert len(Tokenizer.load(embedded.FOLDER).encode(text)) > 3000
    assert textbook(2 * TOKEN * 3000)[1].startswith(text)  # more of it goes on where less of it ends
    assert text.startswith(BEGIN)
    assert text.endswith(END)


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"a\xff", "is no text in UTF-8 .* at byte 1"), (None, "No such file")],
)
def test_a_file_that_is_no_text_is_one_line(tmp_path, content, line):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(BareloopError, match=line):
        find_text(Namespace(text=str(tmp_path / "text"), text_tokens=10), "any/model")
