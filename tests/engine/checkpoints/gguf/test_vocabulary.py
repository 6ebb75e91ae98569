"""Tokenizers of GGUF files give the ids of the tokenizers that they were converted from."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints.gguf.vocabulary import Vocabulary
from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer

# Tokenizer in the shared folder -> tokenizer.ggml.pre, or None for SentencePiece.
TOKENIZERS = {
    "llama-3.2": "llama-bpe",
    "qwen2.5-0.5b-instruct": "qwen2",
    "gpt2": "gpt-2",
    "olmo-2": "dbrx",
    "phi-2": "phi-2",
    "gpt-neox-pythia": "mpt",
    "llama-2": None,
    "mistral-7b-instruct-v0.2": None,
}
TEXTS = (
    "Hello, world! It's 12345 o'clock; WE'LL see.  Two spaces,\ttabs\n\nand lines.\r\n",
    " leading space",
    "",
    "   ",
    "def f(x):\n    return x ** 2  # 数字 1234567\n",
    "你好，世界。Ünïcödé e\u0301 \u00e9 naïve",
    "🙂👩‍👩‍👧 emoji",
    "a\u00a0b \u2581 c",
    "<|im_start|>user\nhi<|im_end|>\n</s><s>[INST] <|begin_of_text|><|endoftext|>",
)


def gguf_metadata(folder: Path, pre: str | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes for a tokenizer.json."""
    content = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = dict(content["model"]["vocab"])
    added = {token["id"]: token for token in content["added_tokens"]}
    by_id = {index: token for token, index in vocabulary.items()} | {i: token["content"] for i, token in added.items()}
    size = max(by_id) + 1
    types = []
    for index in range(size):
        token = by_id.get(index)
        if token is None:
            types.append(5)
        elif token == "<unk>":
            types.append(2)
        elif index in added:
            types.append(3 if added[index]["special"] else 4)
        else:
            types.append(6 if pre is None and token.startswith("<0x") else 1)
    entries: dict[str, Any] = {
        "model": "llama" if pre is None else "gpt2",
        "tokens": [by_id.get(index, f"[PAD{index}]") for index in range(size)],
        "token_type": types,
    }
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    if pre is None:  # the earlier a token is merged, the higher is its score
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        entries["scores"] = [float(-ranks.get(token, 10**9)) for token in entries["tokens"]]
    else:
        entries |= {"pre": pre, "merges": merges}
    ids = {token: index for index, token in by_id.items()}
    for role in ("bos", "eos"):
        token = settings.get(f"{role}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token is not None:
            entries[f"{role}_token_id"] = ids[token]
    entries["add_bos_token"] = tokenizer.encode("x")[0] == entries.get("bos_token_id")
    return {f"tokenizer.ggml.{key}": value for key, value in entries.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_texts_equal_those_of_the_original(shared, load_tokenizer, name):
    original = load_tokenizer(f"tokenizers/{name}")
    vocabulary = Vocabulary(gguf_metadata(shared / "tokenizers" / name, TOKENIZERS[name], original), name)
    converted = Tokenizer(vocabulary.tokenizer(), vocabulary.settings())
    for text in TEXTS:
        ids = original.encode(text)
        assert converted.encode(text) == ids
        assert converted.decode(ids) == original.decode(ids)
        detokenizer = converted.detokenizer()
        assert "".join(detokenizer.push(token) for token in ids) + detokenizer.flush() == converted.decode(ids)


BYTES = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
PIECES = {"model": "llama", "tokens": ["<unk>", "a"], "scores": [0.0, -1.0], "token_type": [2, 1]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model": "bert"}, "tokenizer 'bert' is not implemented; known: gpt2, llama"),
        ({**BYTES, "pre": "chameleon"}, "the pre-tokenizer 'chameleon' is not implemented; known: default, gpt-2"),
        ({**BYTES, "pre": ["gpt-2"]}, "the pre-tokenizer .* is not implemented"),
        ({**BYTES, "merges": ["a b c"]}, "its merges are malformed"),
        ({**BYTES, "merges": ["a z"]}, "its tokenizer cannot be built"),
        ({**BYTES, "merges": [1]}, "merges is not a list of str"),
        ({**BYTES, "tokens": "ab"}, "tokens is not a list of str"),
        ({**BYTES, "token_type": [1]}, "token_type has 1 entries for 3 tokens"),
        ({**BYTES, "bos_token_id": "a"}, "bos_token_id = 'a' is not a token"),
        ({**BYTES, "tokens": ["<s:x>", "a", "b", "ab"], "bos_token_id": 0, "add_bos_token": True}, "cannot be built"),
        ({**PIECES, "scores": []}, "its SentencePiece vocabulary has no scores"),
    ],
)
def test_an_invalid_vocabulary_raises_a_one_line_error(entries, message):
    with pytest.raises(BareloopError, match=message):
        Vocabulary({f"tokenizer.ggml.{key}": value for key, value in entries.items()}, "x.gguf").tokenizer()


def make(entries: dict[str, Any], architecture: str = "llama") -> Vocabulary:
    """A vocabulary with these entries."""
    metadata = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    return Vocabulary({"general.architecture": architecture, **metadata}, "x")


def test_repeated_tokens_keep_their_ids():
    vocabulary = make({**BYTES, "tokens": ["a", "a", "b", "ab"]})
    assert vocabulary.tokenizer().encode("ab").ids == [3]


def test_every_token_that_ends_a_reply_is_found():
    tokens = [*BYTES["tokens"], "</s>", "<end_of_turn>", "<|eom_id|>", "x", "y"]
    vocabulary = make({**BYTES, "tokens": tokens, "eos_token_id": 3, "eot_token_id": 7, "eos_token_ids": [3, 6]})
    assert vocabulary.special_ids() == {"eos_token_id": [3, 7, 6, 4, 5]}
    assert vocabulary.tokenizer().encode("ab<end_of_turn>").ids == [2, 4]
    assert vocabulary.tokenizer().decode([2, 4]) == "ab"  # it is special, whatever its type says


def test_ids_outside_the_vocabulary_count_as_none():
    vocabulary = make({**BYTES, "bos_token_id": 4, "padding_token_id": 2**32 - 1, "eos_token_id": 0})
    assert vocabulary.special_ids() == {"eos_token_id": 0}
    assert vocabulary.settings()["eos_token"] == "a" and "pad_token" not in vocabulary.settings()


def test_sentencepiece_has_default_ids_and_gemma_no_space_prefix():
    entries = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "\u2581", "a"],
        "scores": [0.0, 0.0, 0.0, -1.0, -2.0],
    }
    entries["token_type"] = [2, 3, 3, 1, 1]
    assert make(entries).special_ids() == {"bos_token_id": 1, "eos_token_id": 2}
    assert make(entries).tokenizer().encode("a").ids == [1, 3, 4]
    assert make(entries, "gemma3").tokenizer().encode("a").ids == [1, 4]


def test_a_very_long_token_takes_no_memory():
    entries = {"model": "llama", "tokens": ["<unk>", "a", "a" * 100_000], "scores": [0.0, -1.0, -2.0]}
    tracemalloc.start()
    make({**entries, "token_type": [2, 1, 1]}).tokenizer()
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
