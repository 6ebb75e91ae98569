"""Text to token ids and back, against transformers, and the files that `Tokenizer.load` reads."""

from __future__ import annotations

import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers

from engine.runtime.errors import BareloopError
from engine.text import tokenizer as module
from engine.text.tokenizer import LONG, Tokenizer
from tests.engine.encoders import write_tokenizer

TEXTS = [
    "Hello world",
    "  two  spaces   three\t\ttabs \n\n\n lines \r\n end ",
    "naïve café — “quotes” … ½ ﬁ ①",
    "你好，世界。日本語のテキスト、한국어 텍스트",
    "مرحبا بالعالم שלום עולם \u200f\u200e",
    "👋🏽 👨‍👩‍👧‍👦 🇩🇪 e\u0301 \U0001f9ff",
    "def f(x):\n\treturn {'a': x ** 2}  # ok\n\n\nif __name__ == '__main__':\n    f(3.14159)\n",
    "1234567890 3.14e-10 0xFF $1,000.00 don't I'll we've THEY'RE",
    "<|endoftext|> <|im_start|>user <s> </s> [INST] <|eot_id|> <unk> <0x41> <pad>",
    "\ufffd \x00\x01\x7f \u2028 \ue000 ▁ Ġ",
    "https://example.org/a?b=c&d=%20#e foo@bar.baz",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + " " * 40 + "b",
    "",
]
SAME = ("qwen2.5-0.5b-instruct", "llama-3.2", "olmo-2", "gpt2", "phi-2", "gpt-neox-pythia", "mistral-7b-instruct-v0.2")

# Tokenizers whose ids differ from those of transformers' AutoTokenizer. We follow tokenizer.json. With `legacy: false`,
# LlamaTokenizer replaces the file's normalizer (▁ before every piece of text) by a pre-tokenizer (▁ only before the
# first piece, and not before a space): texts that start with a space, or have one after a control token, differ by a
# ▁. It also replaces the unknown-token rule of the story model, so that unknown characters are dropped.
DIFFERENT = ("tokenizers/llama-2", "checkpoints/llama-tinystories-656k")


@pytest.mark.parametrize("name", SAME)
def test_ids_and_text_equal_transformers(load_tokenizer, load_reference, name):
    tokenizer, reference = load_tokenizer(f"tokenizers/{name}"), load_reference(f"tokenizers/{name}")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == reference(text)["input_ids"], text
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected, text


@pytest.mark.parametrize("name", DIFFERENT)
def test_ids_differ_from_transformers_only_in_known_cases(load_tokenizer, load_reference, name):
    tokenizer, reference = load_tokenizer(name), load_reference(name)
    unknown = tokenizer.token_id("<unk>")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if not text.startswith(" ") and "<s>" not in text and unknown not in ids:
            assert ids == reference(text)["input_ids"], text


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2", "mistral-7b-instruct-v0.2"])
def test_the_ids_of_long_texts_equal_transformers(load_tokenizer, load_reference, name):
    tokenizer, reference = load_tokenizer(f"tokenizers/{name}"), load_reference(f"tokenizers/{name}")
    text = "\n".join(TEXTS) * 6
    assert len(text) > LONG
    for special in (True, False):
        assert tokenizer.encode(text, special) == reference(text, add_special_tokens=special)["input_ids"]


def test_bos_is_added_by_tokenizers_that_add_one_by_default(load_tokenizer):
    llama = load_tokenizer("tokenizers/llama-3.2")
    assert llama.encode("a")[0] == 128000
    assert llama.encode("a", add_special_tokens=False)[0] != 128000
    assert load_tokenizer("tokenizers/qwen2.5-0.5b-instruct").encode("a") == [64]


def test_truncation_and_padding_in_the_file_are_switched_off(shared, tmp_path):
    source = shared / "tokenizers" / "gpt2" / "tokenizer.json"
    settings = json.loads(source.read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    settings["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    assert len(Tokenizer.load(tmp_path).encode("one two three four five six seven")) == 7


def test_vocab_json_and_merges_txt_give_the_ids_of_tokenizer_json(shared, load_tokenizer, tmp_path):
    model = json.loads((shared / "tokenizers" / "gpt2" / "tokenizer.json").read_text())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    old, new = Tokenizer.load(tmp_path), load_tokenizer("tokenizers/gpt2")
    for text in [*TEXTS, "a<|endoftext|>b"]:
        assert old.encode(text) == new.encode(text)
        assert old.decode(old.encode(text)) == new.decode(new.encode(text))


def test_special_tokens_are_found_by_role_and_text(load_tokenizer):
    qwen = load_tokenizer("tokenizers/qwen2.5-0.5b-instruct")
    assert qwen.special_tokens["eos_token"] == "<|im_end|>"
    assert qwen.token_id("<|im_end|>") == 151645
    assert qwen.token_id("no such token") is None
    assert load_tokenizer("tokenizers/llama-2").special_tokens["bos_token"] == "<s>"


@pytest.mark.parametrize("name", ["qwen2.5-0.5b-instruct", "gpt2", "llama-2", "mistral-7b-instruct-v0.2"])
def test_the_bytes_of_all_ids_are_the_text(load_tokenizer, name):
    tokenizer = load_tokenizer(f"tokenizers/{name}")
    space = " " if "mistral" in name or "llama" in name else ""  # that SentencePiece adds
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer.special_ids.isdisjoint(ids):
            expected = space + tokenizer.decode(ids) if text else ""
            assert b"".join(map(tokenizer.token_bytes, ids)) == expected.encode(), text


def test_the_bytes_of_an_id_are_raw_and_a_control_token_has_those_of_its_name(load_tokenizer):
    names = ("qwen2.5-0.5b-instruct", "gpt2", "llama-2")
    qwen, gpt2, llama = (load_tokenizer(f"tokenizers/{name}") for name in names)
    assert qwen.token_bytes(151645) == b"<|im_end|>"
    assert [*map(gpt2.token_bytes, gpt2.encode("🧿"))] == [b"\xf0\x9f", b"\xa7", b"\xbf"]
    assert (llama.token_bytes(2), llama.token_bytes(3 + 0xE4)) == (b"</s>", b"\xe4")
    assert llama.token_bytes(llama.token_id("▁the")) == b" the"
    words = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"né": 0, "b": 5, "?": 1}, unk_token="?")), {})
    assert [words.token_bytes(token) for token in (0, 5)] == ["né".encode(), b"b"]
    for tokenizer in (qwen, llama, words):
        assert [tokenizer.token_bytes(token) for token in (-1, 3 if tokenizer is words else 10**6, 2**40)] == [b""] * 3


def test_threads_that_encode_plain_text_do_not_change_the_ids_of_others(load_tokenizer):
    tokenizer = load_tokenizer("tokenizers/qwen2.5-0.5b-instruct")
    text = "<|im_start|>user\nnaïve café<|im_end|>\n" * 60
    expected = tokenizer.encode(text), tokenizer.encode_plain(text), tokenizer.decode(tokenizer.encode(text))
    assert expected[0] != expected[1]

    def encode(_: int) -> bool:
        ids = tokenizer.encode(text)
        both = tokenizer.encode_all([text, text])
        return (ids, tokenizer.encode_plain(text), tokenizer.decode(ids)) == expected and both == [ids, ids]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(encode, range(30)))


def test_an_unreadable_folder_is_refused_in_one_line(shared, tmp_path):
    with pytest.raises(BareloopError, match=r"has no tokenizer.json"):
        Tokenizer.load(tmp_path)
    shutil.copy(shared / "tokenizers" / "tinyllama-1.1b-chat" / "tokenizer.model", tmp_path)
    with pytest.raises(BareloopError, match=r"only tokenizer.model \(SentencePiece\)"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')
    with pytest.raises(BareloopError, match=r"cannot read .*tokenizer.json") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_long_text_in_one_thread_holds_up_no_other():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = Tokenizer(backend, {})
    began, may_end = threading.Event(), threading.Event()

    class Slow:
        def encode_batch_fast(self, texts, add_special_tokens):
            began.set()
            assert may_end.wait(60)
            return backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    with ThreadPoolExecutor(1) as pool:
        tokenizer.backend = Slow()
        long = pool.submit(tokenizer.encode, "a" * LONG)
        assert began.wait(60)
        tokenizer.backend = backend
        assert (tokenizer.encode("a"), tokenizer.encode_plain("a"), tokenizer.decode([0])) == ([0], [0], "a")
        assert not long.done()
        may_end.set()
        assert long.result() == [1]


PIECES = [
    "a",
    "b c",
    " ",
    "  ",
    "\n",
    "\t",
    "x" * 120,
    "é",
    "e\u0301",
    " \u0301b",
    "[MASK]",
    "[ MASK]",
    "你好",
    "Σ",
    "\x00",
    "\x85",
    "-",
]


@pytest.mark.parametrize("max_length", [3, 4, 9, 40])
def test_a_text_that_is_cut_has_the_ids_of_one_that_was_encoded_as_a_whole(tmp_path, monkeypatch, max_length):
    monkeypatch.setattr(module, "CHARACTERS_PER_TOKEN", 1)
    write_tokenizer(tmp_path)
    tokenizer, generator = Tokenizer.load(tmp_path), random.Random(0)
    texts = ["".join(generator.choices(PIECES, k=generator.randrange(60))) for _ in range(500)]
    rows, truncated = tokenizer.encode_truncated(texts, max_length)
    whole = tokenizer.encode_all(texts)
    assert rows == [ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in whole]
    assert truncated == sum(len(ids) > max_length for ids in whole)
    assert truncated > 10


@pytest.mark.parametrize("kind", ["words", "one word", "spaces", "a space and a word"])
def test_of_a_long_text_only_a_beginning_is_encoded(tmp_path, monkeypatch, kind):
    write_tokenizer(tmp_path)
    tokenizer, lengths = Tokenizer.load(tmp_path), []
    encode = tokenizer._encode_batch

    def observed(backend, texts, add_special_tokens):
        lengths.append([len(text) for text in texts])
        return encode(backend, texts, add_special_tokens)

    monkeypatch.setattr(tokenizer, "_encode_batch", observed)
    text = {
        "words": "a b " * 10_000,
        "one word": "a" * 40_000 + " b",
        "a space and a word": " " + "a" * 40_000,
        "spaces": "\n" * 500 + "a " * 10_000,
    }[kind]
    rows, truncated = tokenizer.encode_truncated([text, "a b"], 8)
    assert rows[1] == [2, 5, 6, 3]
    assert (len(rows[0]), truncated) == {"one word": (4, 0), "a space and a word": (3, 0)}.get(kind, (8, 1))
    assert sum(map(sum, lengths)) < (4_000 if truncated else 100_000)


def test_a_byte_level_tokenizer_encodes_the_whole_text(load_tokenizer):
    tokenizer, text = load_tokenizer("tokenizers/gpt2"), "a  b " * 2_000
    assert tokenizer.encode_truncated([text], 10) == ([tokenizer.encode(text)[:10]], 1)
    assert not tokenizer._splits_at_spaces
