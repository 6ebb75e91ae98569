"""Logits that are NaN or infinite: generation stops with a one-line error, and the state stays consistent."""

from __future__ import annotations

import math

import pytest
import torch

from chat.conversation.events import Settings
from chat.conversation.session import Session
from chat.models.local import LocalModel
from engine import LLM, SamplingParams, kernels
from engine.decoding.draws import INVALID
from engine.decoding.loop import decode
from engine.decoding.sampling import Context, choose
from engine.runtime.errors import BareloopError, UsageError

MESSAGE = r"the logits are not finite numbers, first at position {} of {}"
PARAMS = {
    "greedy": SamplingParams(max_new_tokens=4),
    "sampling": SamplingParams(max_new_tokens=4, temperature=1.0, seed=1),
    "top-p": SamplingParams(max_new_tokens=4, temperature=1.0, top_p=0.9, top_k=5, min_p=0.1, seed=1),
    "penalties": SamplingParams(max_new_tokens=4, repetition_penalty=1.3, presence_penalty=0.5, logprobs=2),
}


@pytest.fixture
def broken(tiny_llama) -> LLM:
    """A NaN in one norm: every logit is NaN, from position 0 on."""
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="float32")
    llm.model.layers[1].mlp_norm_before.weight.data[3] = math.nan
    return llm


@pytest.fixture(params=["kernels", "torch"])
def backend(request, monkeypatch):
    """Computation by the C++ kernels, and by PyTorch's operators."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "for_input", lambda x: None)


@pytest.mark.parametrize("method", PARAMS)
def test_the_error_of_generation_names_the_model_and_the_first_position(broken, prompt, method, backend):
    ids = prompt(9)
    for call in (lambda: broken.generate([ids], PARAMS[method]), lambda: list(broken.stream(ids, PARAMS[method]))):
        with pytest.raises(BareloopError, match=MESSAGE.format(0, 9)) as error:
            call()
        assert str(error.value).startswith(str(broken.folder))


def test_a_token_with_nan_embeddings_is_located_and_the_sequence_can_be_fed_again(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="float32")
    good, bad = [5, 6, 7, 8], [5, 6, 99, 8]
    llm.model.embed.weight.data[99] = math.nan
    if llm.model.head.weight is llm.model.embed.weight:
        pytest.skip("tied")
    expected = llm.generate([good], PARAMS["greedy"])[0].token_ids
    with pytest.raises(BareloopError, match=MESSAGE.format(2, 4)):
        llm.generate([good, bad], PARAMS["greedy"])
    sequence = llm.sequence()
    sequence.feed(bad)
    with pytest.raises(BareloopError):
        list(decode([sequence], PARAMS["greedy"]))
    assert sequence.ids == [] and sequence.feed(good) == 0
    assert [event.token_id for event in decode([sequence], PARAMS["greedy"])] == expected


def test_scoring_is_refused_if_log_likelihoods_are_nan(broken, prompt):
    with pytest.raises(BareloopError, match="log-likelihoods are NaN"):
        broken.score([(prompt(5), [3])])


@pytest.mark.parametrize("method", PARAMS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_invalidates_only_its_row(method, value, backend):
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    logits[1, 77] = value
    with torch.inference_mode():
        chosen = choose(logits, [Context(PARAMS[method], [1, 2], 1, 5)] * 3).tolist()
    assert [token == INVALID for token in chosen] == [False, True, False]


def test_a_chat_raises_the_error_and_keeps_the_conversation(shared):
    llm = LLM.load(shared / "checkpoints" / "llama-tinystories-656k", dtype="float32")
    session = Session(LocalModel(llm), Settings(sampling={"max_new_tokens": 4}))
    list(session.send("Hello!"))
    turns = [list(turn) for turn in session.turns]
    llm.model.norm.weight.data[0] = math.nan
    with pytest.raises(BareloopError, match="not finite numbers"):
        list(session.send("And you?"))
    assert session.turns == turns


def test_float16_overflow_suggests_another_dtype(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="float16")
    llm.model.norm.weight.data[:] = 6e4
    with pytest.raises(BareloopError, match="use --dtype bfloat16 or float32"):
        llm.generate([prompt(5)], PARAMS["greedy"])


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_logit_bias_must_be_finite_or_minus_infinity(bias):
    with pytest.raises(UsageError, match=r"logit_bias of token 5 is (nan|inf): use a number from .*, or -inf"):
        SamplingParams(logit_bias={5: bias})
    assert SamplingParams(logit_bias={5: -math.inf}).logit_bias == {5: -math.inf}
