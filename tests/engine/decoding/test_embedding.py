"""Embeddings of texts: pooling, cutting, packing, progress; encoders and decoders."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from engine import LLM, kernels
from engine.decoding.embedding import json_arrays, plan
from engine.runtime.errors import BareloopError
from tests.engine.encoders import make_encoder

TEXTS = ["a", "", "b c d e f g h", "zebra x", "a b c d e f g h i j k l m n o p q r s t", "B C D E F G H"]
POOLED = {
    "mean_tokens": lambda hidden: hidden.mean(0),
    "cls_token": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
}


@pytest.fixture(scope="module", params=POOLED)
def encoder(request, tmp_path_factory):
    """A tiny encoder, its engine, and the float64 function of its pooling."""
    tiny = make_encoder(tmp_path_factory.mktemp("bert") / "model", 3, request.param)
    return tiny, LLM.load(tiny.folder, "cpu"), POOLED[request.param]


def expected(tiny, pooled, rows):
    return torch.stack([F.normalize(pooled(tiny.hidden(row)), dim=0) for row in rows])


def test_texts_are_embedded_as_the_checkpoint_says(encoder):
    tiny, llm, pooled = encoder
    rows = llm.embedder.encode(TEXTS).rows
    assert rows[:2] == [[2, 5, 3], [2, 3]]
    vectors = llm.embed(TEXTS)
    assert vectors.dtype == torch.float32
    assert vectors.shape == (len(TEXTS), llm.embedding_size)
    assert (vectors - expected(tiny, pooled, rows)).abs().max() < 1e-5
    assert torch.equal(vectors[2], vectors[5])  # lower case is the same


@pytest.mark.parametrize("batch_tokens", [1, 10, 1000])
def test_a_text_has_the_same_vector_in_every_batch_and_order(encoder, batch_tokens):
    _, llm, _ = encoder
    alone = torch.cat([llm.embed([text]) for text in TEXTS])
    assert (llm.embed(TEXTS, batch_tokens) - alone).abs().max() < 1e-5
    assert (llm.embed(TEXTS[::-1], batch_tokens).flip(0) - alone).abs().max() < 1e-5


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_text_has_the_same_vector_alone_and_in_a_batch_with_quantized_weights(tmp_path, quant):
    llm = LLM.load(make_encoder(tmp_path, hidden_size=64, intermediate_size=128).folder, "cpu", quant=quant)
    kernels.wait()
    alone = torch.cat([llm.embed([text]) for text in TEXTS])
    assert (llm.embed(TEXTS * 3)[: len(TEXTS)] - alone).abs().max() < 1e-5


def test_an_encoder_that_does_not_say_how_it_is_pooled_is_noted(tmp_path, caplog):
    folder = make_encoder(tmp_path).folder
    (folder / "modules.json").unlink()
    LLM.load(folder, "cpu").embed(["a"])
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder} has no modules.json, which says how texts are pooled: a vector is the mean over all tokens; if the "
        "model was published with that file, download it again, with all its files"
    ]


def test_a_text_that_is_too_long_is_cut_and_keeps_its_last_special_token(encoder):
    _, llm, _ = encoder
    encoded = llm.embedder.encode(["a " * 100, "b", "a " * 22])
    assert [len(row) for row in encoded.rows] == [24, 3, 24]
    assert encoded.rows[0][-1] == 3
    assert (encoded.truncated, encoded.tokens) == (1, 51)
    assert torch.equal(llm.embed(["a " * 100]), llm.embed(["a " * 22]))


def test_progress_counts_every_text_once(encoder):
    _, llm, _ = encoder
    told: list[int] = []
    llm.embed(TEXTS, 10, told.append)
    assert sum(told) == len(TEXTS)
    assert len(told) > 1
    assert llm.embed([]).shape == (0, 48)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.embed("a"), "embed takes a list of texts"),
        (lambda llm: llm.embed([None]), "text 1 of 1 is of type NoneType, not text"),
        (lambda llm: llm.embed(["a", 3]), "text 2 of 2 is of type int, not text"),
        (lambda llm: llm.embedder.encode(["a", b"b"], 7, 9), "text 9 of 9 is of type bytes, not text"),
        (lambda llm: llm.embed(["a"], 0), "batch_tokens is 0"),
        (lambda llm: llm.embed(["\ud800"]), "not valid Unicode"),
        (lambda llm: llm.embedder.vectors([[]]), "1 to 24 tokens, and one has 0"),
        (lambda llm: llm.embedder.vectors([[2] * 25]), "1 to 24 tokens, and one has 25"),
        (lambda llm: llm.embedder.vectors([[64]]), "token ids are 0 to 63"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(encoder, call, message):
    with pytest.raises(BareloopError, match=message):
        call(encoder[1])


def test_vectors_that_are_not_finite_are_an_error(tmp_path):
    llm = LLM.load(make_encoder(tmp_path).folder, "cpu")
    with torch.no_grad():
        llm.model.norm.weight[0] = float("nan")
    with pytest.raises(BareloopError, match="not finite in float32"):
        llm.embed(["a"])


@pytest.mark.parametrize("variant", ["llama", "gemma2", "mamba"])
@pytest.mark.parametrize("batch_tokens", [7, 2048])
def test_a_decoder_gives_the_normalized_mean_of_its_last_hidden_states(draw_tiny, prompt, variant, batch_tokens):
    tiny = draw_tiny(variant)
    llm = LLM.load(tiny.folder, "cpu", "float32")
    rows = [prompt(length, length) for length in (3, 20, 20, 1)]
    trunk = tiny.reference.backbone if variant == "mamba" else tiny.reference.model
    with torch.no_grad():
        means = torch.stack([trunk(torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows])
    vectors = llm.embedder.vectors(rows, batch_tokens)
    assert (vectors - F.normalize(means, dim=-1)).abs().max() < 2e-5
    assert not llm.embedder.is_trained
    assert not llm.is_encoder


def test_a_model_without_a_tokenizer_embeds_ids_alone(draw_tiny):
    llm = LLM.load(draw_tiny("llama").folder, "cpu", "float32")
    assert llm.embedder.vectors([[5, 6]]).shape == (1, 48)
    with pytest.raises(BareloopError, match="no tokenizer"):
        llm.embed(["a"])


def test_steps_have_a_bounded_number_of_tokens_and_the_longest_first():
    lengths = [3, 9, 1, 30, 4, 4]
    steps = list(plan(lengths, 10))
    assert steps == [[3], [1], [4, 5], [0, 2]]
    assert list(plan([], 10)) == []


def test_json_has_every_bit_of_a_float32():
    vectors = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-40, 38, 20)[:, None]
    vectors[0] = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.1, 3.4028235e38, 1e-45])
    assert torch.equal(torch.tensor([json.loads(line) for line in json_arrays(vectors)]), vectors)
    assert list(json_arrays(torch.empty(0, 7))) == []
