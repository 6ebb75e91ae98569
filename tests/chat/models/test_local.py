"""A model that this program loads: what it records and computes about tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import torch

from chat.models.local import LocalModel
from engine import LLM

MESSAGES = [{"role": "user", "content": "Hi, I'm Zoë. 🙂"}, {"role": "assistant", "content": "Nice to meet you!"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.load("demo", dtype="float32")


def test_a_score_is_the_softmax_of_the_logits(llm):
    model = LocalModel(llm)
    tokens = model.score(MESSAGES)
    ids = [token for token, _ in model.tokens(MESSAGES)]
    assert [token.id for token in tokens] == ids
    logprobs = torch.log_softmax(llm.logits(ids), dim=-1)
    assert tokens[0].logprob is None
    for position, token in enumerate(tokens[1:]):
        assert token.logprob == pytest.approx(float(logprobs[position, token.id]), abs=1e-4)
        assert [value for _, value in token.alternatives] == pytest.approx(
            logprobs[position].topk(5)[0].tolist(), abs=1e-4
        )
    assert MESSAGES[0]["content"] in "".join(token.piece for token in tokens)
    assert tokens[0].text.startswith("<|") and tokens[0].piece == ""


def test_alternatives_are_recorded_as_many_as_anyone_wants(llm):
    for record, logprobs, expected in ((0, 0, 0), (3, 0, 3), (3, 2, 3), (2, 4, 4)):
        model = LocalModel(llm, record=record).at(datetime.now())
        sampling = {"max_new_tokens": 4, "logprobs": logprobs}
        events = list(model.generate(MESSAGES[:1], sampling, False))
        tokens = model.probabilities(events)
        assert [token.id for token in tokens] == [event.token_id for event in events]
        assert {len(token.alternatives) for token in tokens} == {expected}
        assert all((token.logprob is None) == (expected == 0) for token in tokens)


def test_threads_get_the_tokens_of_their_own_messages(llm):
    model = LocalModel(llm)
    chats = [[{"role": "user", "content": f"number {number}"}] for number in range(8)]
    expected = [
        LocalModel(llm, model.scheduler, datetime.fromisoformat(model.template.now)).tokens(chat) for chat in chats
    ]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            assert list(threads.map(model.tokens, chats)) == expected


def test_costs_and_control_tokens_are_known(llm):
    model = LocalModel(llm)
    weights = sum(parameter.nbytes for parameter in llm.model.parameters())
    assert weights / 2 < model.token_bytes(0) < model.token_bytes(1000) < 3 * weights
    assert 1e8 < model.bandwidth() <= model.bandwidth()
    ends = [llm.tokenizer.decode([token], skip_special_tokens=False) for token in llm.eos_token_ids]
    assert all(model.ends(text) and model.is_control(text) for text in ends)
    assert not model.ends("Hi") and not model.is_control("Hi")
    assert "Zoë. 🙂" in model.prompt_text(MESSAGES)
