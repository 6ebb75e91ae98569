"""Texts per second of MiniLM, beside sentence-transformers' way: padded batches of 32 texts of similar lengths.

pytest --benchmark-only bench/test_embedding.py
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import LLM
from engine.checkpoints import embedded
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError

BATCH = 32  # sentence-transformers' default
SHORTEST, LONGEST = 3, 220  # words
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-3}  # cosine error between the two


@pytest.fixture(scope="module", params=TOLERANCES)
def minilm(request: pytest.FixtureRequest) -> LLM:
    """MiniLM on the CPU, in each dtype. Skips without its package."""
    try:
        llm = LLM.load(embedded.MINILM, "cpu", request.param)
    except BareloopError as error:
        pytest.skip(str(error))
    llm.pack()
    return llm


def mixed_texts(llm: LLM, count: int) -> list[str]:
    """Texts of mixed lengths: as many of 3 to 6 words as of 110 to 220."""
    generator = random.Random(0)
    words = sorted(word for word in llm.tokenizer.backend.get_vocab() if word.isalpha() and word.isascii())
    sizes = (int(SHORTEST * (LONGEST / SHORTEST) ** generator.random()) for _ in range(count))
    return [" ".join(generator.choices(words, k=size)) for size in sizes]


def padded(model: Any, tokenizer: Any, texts: list[str], max_length: int) -> Tensor:
    """The vectors of texts as sentence-transformers computes them, with transformers' model and tokenizer."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    vectors = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(texts), BATCH):
        chosen = order[start : start + BATCH]
        batch = [texts[index] for index in chosen]
        features = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**features).last_hidden_state
            mask = features["attention_mask"][:, :, None].to(hidden.dtype)
            vectors[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).float()
    return vectors


def _count(request: pytest.FixtureRequest) -> int:
    return 1000 if request.config.getoption("--bench-full") else 200


def _note(benchmark: Any, llm: LLM, texts: list[str]) -> None:
    seconds = benchmark.stats.stats.min
    tokens = llm.embedder.encode(texts).tokens
    benchmark.extra_info.update(texts_per_second=len(texts) / seconds, tokens_per_second=tokens / seconds)


@pytest.mark.benchmark(group="embedding")
def test_embed(benchmark: Any, request: pytest.FixtureRequest, minilm: LLM) -> None:
    """Packed steps with little padding."""
    texts = mixed_texts(minilm, _count(request))
    benchmark.pedantic(minilm.embed, args=(texts,), rounds=3, warmup_rounds=1)
    _note(benchmark, minilm, texts)


@pytest.mark.benchmark(group="embedding")
def test_padded_batches_of_transformers(benchmark: Any, request: pytest.FixtureRequest, minilm: LLM) -> None:
    """The same texts, with the same vectors."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(minilm.folder, add_pooling_layer=False, dtype=minilm.dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.folder)
    texts = mixed_texts(minilm, _count(request))
    arguments = (model, tokenizer, texts, minilm.embedder.max_length)
    vectors = benchmark.pedantic(padded, args=arguments, rounds=3, warmup_rounds=1)
    _note(benchmark, minilm, texts)
    assert F.cosine_similarity(vectors, minilm.embed(texts)).min() > 1 - TOLERANCES[dtype_name(minilm.dtype)]
