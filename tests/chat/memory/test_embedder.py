"""The engine's embedder: vectors of length 1 with the checkpoint's prefixes, and a fingerprint of all that decides."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from chat.memory.embedder import default_embedder, load_embedder
from chat.memory.store import MemoryStore, NewPiece
from engine.checkpoints import embedded


@pytest.fixture(scope="module")
def minilm() -> str:
    """Skipped if its package is not installed."""
    if find_spec(embedded.MINILM_PACKAGE) is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {embedded.MINILM}: {embedded.MINILM_INSTALL}")
        pytest.skip(f"needs {embedded.MINILM}: {embedded.MINILM_INSTALL}")
    return embedded.MINILM


@pytest.fixture(scope="module")
def embedder(minilm):
    return load_embedder(minilm, device="cpu")


def test_minilm_finds_by_meaning_what_shares_no_word(embedder, path):
    assert (default_embedder(), embedder.name, embedder.size) == ("minilm", "minilm", 384)
    texts = ["My daughter is called Ada.", "The server listens on port 8080.", "I am allergic to peanuts."]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    with MemoryStore.open(path, embedder) as store:
        store.add([NewPiece(text, "note", "me") for text in texts])
        for query, expected in (("What food must you avoid?", 2), ("names of children", 0), ("network address", 1)):
            (hit,) = store.search(query, limit=1, mode="vector")
            assert hit.piece.text == texts[expected]
    assert embedder.count("unbelievable") == len(embedder.llm.tokenizer.encode("unbelievable")) - 2


def test_prefixes_come_from_the_checkpoint_or_the_caller_and_are_part_of_the_fingerprint(embedder, minilm, tmp_path):
    folder = tmp_path / "e5"
    shutil.copytree(embedder.llm.folder, folder)
    settings = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    named = load_embedder(str(folder), device="cpu")
    given = load_embedder(minilm, "query: ", "passage: ", device="cpu")
    assert named.prefixes == given.prefixes == {"query": "query: ", "passage": "passage: "}
    assert named.fingerprint == given.fingerprint != embedder.fingerprint
    for kind in ("query", "passage"):
        assert np.array_equal(named.embed(["a cat"], kind), embedder.embed([f"{kind}: a cat"]))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert load_embedder(str(folder), device="cpu").fingerprint != named.fingerprint
