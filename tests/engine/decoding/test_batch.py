"""Many prompts fed together: the same as one by one, with what they share computed once."""

from __future__ import annotations

import pytest
import torch

from engine import LLM, SamplingParams
from engine.decoding.batch import STEM_COST, prefill_batch
from engine.decoding.loop import decode
from engine.runtime.errors import BareloopError


def logits_of(rows) -> torch.Tensor:
    return torch.stack([row.logits for row in rows])


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "mamba", "rwkv"])
def test_every_prompt_stands_where_it_would_alone(draw_tiny, prompt, variant):
    """Behind a root, in pairs behind a paragraph, and alone; for every kind of state."""
    tiny = draw_tiny(variant)
    llm = LLM.load(tiny.folder, device="cpu")
    shots, paragraph = prompt(20, 1), prompt(STEM_COST + 9, 2)
    texts = [[*shots, *paragraph, *prompt(5, 3)], [*shots, *prompt(9, 4)], [*shots, *paragraph, *prompt(7, 5)]]
    root = llm.sequence()
    root.feed(shots)
    fed = prefill_batch(root, texts)
    expected = torch.stack([tiny.logits(text)[-1] for text in texts]).float()
    scale = max(1.0, float(expected.abs().max()))
    assert (logits_of(fed.rows) - expected).abs().max() <= tiny.tolerance * scale
    assert fed.computed == len(paragraph) + 5 + 7 + 9
    assert root.ids == shots
    written = {index: [] for index in range(3)}
    for event in decode(fed.rows, SamplingParams(max_new_tokens=6, ignore_eos=True)):
        written[event.sequence].append(event.token_id)
    assert list(written.values()) == [tiny.greedy(text, 6) for text in texts]


def test_the_same_prompts_give_the_same_bits(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    texts = [[*prompt(40, 1), *prompt(count, count)] for count in (3, 8, 5)]
    first, again = (logits_of(prefill_batch(llm.sequence(), texts).rows) for _ in range(2))
    assert torch.equal(first, again)


def test_equal_prompts_share_all_but_their_last_token(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    text = prompt(50, 1)
    fed = prefill_batch(llm.sequence(), [text, text, text])
    assert fed.computed == 49 + 3
    assert [row.ids for row in fed.rows] == [text] * 3


def test_an_empty_prompt_is_refused(tiny_llama):
    with pytest.raises(BareloopError, match="at least 1 token"):
        prefill_batch(LLM.load(tiny_llama.folder, device="cpu").sequence(), [[1, 2], []])
