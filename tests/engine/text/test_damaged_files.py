"""Damaged tokenizer_config.json, added_tokens.json and generation_config.json: read, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.decoding.params import SamplingParams, defaults
from engine.models.config_reader import token_ids
from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json
from engine.text.chat_template import ChatTemplate
from engine.text.detokenizer import byte_table
from engine.text.tokenizer import Tokenizer

TEXT = "Hello <s> wörld</s>"
SETTINGS = {
    "bos_token": {"content": "<s>", "lstrip": False, "special": True},
    "eos_token": "</s>",
    "pad_token": None,
    "unk_token": "<unk>",
    "added_tokens_decoder": {
        "256": {"content": "<s>", "special": True},
        "257": {"content": "</s>", "special": True},
    },
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    "model_max_length": 64,
}
ADDED_TOKENS = {"<s>": 256, "</s>": 257}
GENERATION = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "eos_token_id": [1, 2],
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**30, 0.5, 1e308, float("nan"), float("-inf")),
    *("", "x", "<s>", "\ud800", "a\udfffb", "x" * 10_000, [], [None], [[1]], ["<s>"], {}, {"content": None}),
    *({"content": "\ud800"}, {"content": 1, "special": True}, {"0": None}, {"0": {"content": "\udc00"}}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A byte-level BPE tokenizer without merges, in GPT-2's format, because only there added_tokens.json is read."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(byte_table()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def mutated(original: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """A copy in which one to three values, at any depth, are replaced or removed, or keys are added."""
    result = copy.deepcopy(original)
    for _ in range(generator.randint(1, 3)):
        container: Any = result
        while True:
            keys = list(container) if isinstance(container, dict) else range(len(container))
            key = generator.choice([*keys, "<pad>"]) if isinstance(container, dict) else generator.choice(keys)
            inner = container[key] if key in keys else None
            if not (isinstance(inner, dict | list) and inner) or generator.random() < 0.4:
                break
            container = inner
        if generator.random() < 0.15 and key in keys:
            del container[key]
        else:
            container[key] = generator.choice(VALUES)
    return result


def use_tokenizer(folder: Path) -> None:
    """Load the tokenizer; encode, decode and stream a text."""
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids, skip_special_tokens=False) == TEXT
    detokenizer = tokenizer.detokenizer()
    assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == tokenizer.decode(ids)
    tokenizer.encode_plain(TEXT)
    if tokenizer.settings:
        ChatTemplate.load(folder, tokenizer)


def use_generation_config(folder: Path) -> None:
    """Read the file as `LLM.load` does."""
    content = read_json(folder / "generation_config.json")
    token_ids(content.get("eos_token_id"), "generation_config.json: eos_token_id")
    SamplingParams(**defaults(content))


@pytest.mark.parametrize(
    ("name", "original", "use"),
    [
        ("tokenizer_config.json", SETTINGS, use_tokenizer),
        ("added_tokens.json", ADDED_TOKENS, use_tokenizer),
        ("generation_config.json", GENERATION, use_generation_config),
    ],
)
def test_a_mutated_file_is_read_or_refused_in_one_line(folder, name, original, use: Callable[[Path], None]):
    generator = random.Random(name)
    accepted = 0
    try:
        for _ in range(300):
            content = mutated(original, generator)
            (folder / name).write_text(json.dumps(content))
            try:
                use(folder)
                accepted += 1
            except BareloopError as error:
                message = str(error)
                assert message and "\n" not in message and len(message) < 600, content
    finally:
        (folder / name).unlink()
    assert accepted > 0


def test_a_lone_surrogate_is_refused_with_its_position(folder):
    tokenizer = Tokenizer.load(folder)
    for encode in (tokenizer.encode, tokenizer.encode_plain, lambda text: tokenizer.encode_all(["valid", text])):
        with pytest.raises(BareloopError, match=r"character 3 is a lone surrogate \(U\+D83D\)"):
            encode("abc\ud83d d")
