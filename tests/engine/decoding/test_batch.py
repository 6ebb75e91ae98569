"""Prefilling many prompts together: the same results as one by one, with shared parts computed once."""

from __future__ import annotations

import pytest
import torch

from engine import LLM, SamplingParams
from engine.decoding.batch import STEM_COST, prefill_batch
from engine.decoding.loop import decode
from engine.runtime.errors import BareloopError


def logits_of(rows) -> torch.Tensor:
    """The logits [R, V] of prefilled sequences."""
    return torch.stack([row.logits for row in rows])


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "mamba", "rwkv"])
def test_prompts_that_share_parts_give_the_logits_and_tokens_of_each_alone(draw_tiny, prompt, variant):
    """All prompts share the root, two of them a paragraph. The variants have all kinds of states."""
    tiny = draw_tiny(variant)
    llm = LLM.load(tiny.folder, device="cpu")
    shots, paragraph = prompt(20, 1), prompt(STEM_COST + 9, 2)
    texts = [[*shots, *paragraph, *prompt(5, 3)], [*shots, *prompt(9, 4)], [*shots, *paragraph, *prompt(7, 5)]]
    root = llm.sequence()
    root.feed(shots)
    batch = prefill_batch(root, texts)
    expected = torch.stack([tiny.logits(text)[-1] for text in texts]).float()
    scale = max(1.0, float(expected.abs().max()))
    assert (logits_of(batch.rows) - expected).abs().max() <= tiny.tolerance * scale
    assert batch.computed == len(paragraph) + 5 + 7 + 9
    assert root.ids == shots
    generated = {index: [] for index in range(3)}
    for event in decode(batch.rows, SamplingParams(max_new_tokens=6, ignore_eos=True)):
        generated[event.sequence].append(event.token_id)
    assert list(generated.values()) == [tiny.greedy(text, 6) for text in texts]


def test_the_same_prompts_give_the_same_bits(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    texts = [[*prompt(40, 1), *prompt(count, count)] for count in (3, 8, 5)]
    first, again = (logits_of(prefill_batch(llm.sequence(), texts).rows) for _ in range(2))
    assert torch.equal(first, again)


def test_equal_prompts_share_all_but_their_last_token(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    text = prompt(50, 1)
    batch = prefill_batch(llm.sequence(), [text, text, text])
    assert batch.computed == 49 + 3
    assert [row.ids for row in batch.rows] == [text] * 3


def test_an_empty_prompt_is_refused(tiny_llama):
    with pytest.raises(BareloopError, match="at least 1 token"):
        prefill_batch(LLM.load(tiny_llama.folder, device="cpu").sequence(), [[1, 2], []])
