"""Requests with images: the same tokens as alone, images that stay as long as a request needs them, and the cache."""

from __future__ import annotations

import gc
import math
import re
from copy import copy

import pytest

from engine import LLM, SamplingParams
from engine.decoding.grammar import Grammar
from engine.decoding.images import ImageLibrary, is_image_id
from engine.decoding.scheduling.scheduler import Scheduler
from engine.runtime.errors import BareloopError
from tests.engine.models.vision.tiny import TinyVLM, picture, tiny_checkpoint

CAT, DOG = picture(90, 60, seed=1), picture(40, 70, seed=2)
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "What is in this picture?"}]}
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyVLM:
    return tiny_checkpoint(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def loaded(tiny) -> LLM:
    return LLM.load(tiny.folder, device="cpu", dtype="float32")


@pytest.fixture
def llm(loaded, monkeypatch) -> LLM:
    """The model with a library of its own, without any images."""
    return with_library(loaded, monkeypatch)


def with_library(llm: LLM, monkeypatch: pytest.MonkeyPatch, **limit: int) -> LLM:
    library, template = ImageLibrary(llm.model, llm.folder, llm.tokenizer, **limit), copy(llm.chat_template)
    template.images = library
    monkeypatch.setitem(vars(llm), "images", library)
    monkeypatch.setitem(vars(llm), "chat_template", template)
    return llm


def reply(count: int = 6, **others) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, ignore_eos=True, **others)


def tokens(request) -> list[int]:
    return [event.token_id for event in request]


def prompts(llm: LLM) -> list[list[int]]:
    """With one image, another, both, and none; some begin alike."""
    cat, dog = llm.images.encode(CAT), llm.images.encode(DOG)
    return [[1, 40, *cat, 50], [1, 40, *cat, 51], [1, 40, *dog, 50], [1, 40, *cat, 50, *dog, 7], [1, 40, 41], [*dog]]


@pytest.mark.parametrize("chunk", [128, 512])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_requests_together_have_their_tokens_as_alone(tiny, dtype, chunk):
    llm = LLM.load(tiny.folder, device="cpu", dtype=dtype)
    work = [(ids, params) for ids in prompts(llm) for params in (reply(), reply(temperature=1.0, seed=5))]
    alone = []
    for ids, params in work:
        with Scheduler(llm, prefill_chunk=chunk, exact=True) as scheduler:
            alone.append(tokens(scheduler.submit(ids, params)))
    with Scheduler(llm, prefill_chunk=chunk, exact=True) as scheduler:
        requests = [scheduler.submit(ids, params) for ids, params in work]
        assert [tokens(request) for request in requests] == alone
        assert any(request.cached_tokens for request in requests) == (chunk == 128)  # there pieces end at tiles


def test_greedy_replies_are_those_of_the_reference(tiny, loaded):
    import torch

    from engine.runtime.pictures import read_picture

    ids = [1, 40, *loaded.images.encode(CAT), 50]
    processor = loaded.images.processor
    tiles = [torch.from_numpy(processor.normalize(tile)) for tile in processor.split(read_picture(CAT)).pixels]
    text = loaded.images.placeholders(ids)
    for token in loaded.generate([ids], reply())[0].token_ids:
        assert int(tiny.logits(text, torch.stack(tiles))[-1].argmax()) == token
        text.append(token)


def test_the_cache_of_prefixes_has_images_and_tells_them_apart(llm):
    first, again, other, both, *_ = prompts(llm)
    with Scheduler(llm, prefill_chunk=16, exact=False) as scheduler:
        for ids, cached in ((first, 0), (again, len(first) - 1), (other, 0), (both, len(first))):
            request = scheduler.submit(ids, reply())
            tokens(request)
            assert request.cached_tokens == cached
            assert request.usage.prompt_tokens == len(ids)


def test_prompts_of_another_scope_share_nothing(llm):
    ids = prompts(llm)[0]
    with Scheduler(llm, exact=False) as scheduler:
        for scope, cached in (("a", 0), ("b", 0), ("a", len(ids) - 1)):
            request = scheduler.submit(ids, reply(1), scope=scope)
            tokens(request)
            assert request.cached_tokens == cached


def test_a_step_computes_one_group_of_tiles_at_most(llm, monkeypatch):
    computed, original = [], llm.model.image_vectors
    monkeypatch.setattr(llm.model, "image_vectors", lambda pixels: computed.append(len(pixels)) or original(pixels))
    ids = prompts(llm)[0]
    with Scheduler(llm) as scheduler:
        other, request = scheduler.submit([5, 6], reply(100)), scheduler.submit(ids, reply(1))
        before = 0
        while not request.is_finished:
            scheduler.step()
            assert len(computed) - before <= 1
            before = len(computed)
        assert other.completion_tokens >= len(computed)  # which had steps between
    assert sum(computed) == sum(map(is_image_id, ids)) // 4


def test_a_request_keeps_its_images(loaded, monkeypatch):
    llm = with_library(loaded, monkeypatch, max_bytes=1)
    with Scheduler(llm) as scheduler:
        requests = [scheduler.submit([1, *llm.images.encode(image), 5], reply()) for image in (CAT, DOG)]
        ids = requests[0].prompt.ids
        assert [len(tokens(request)) for request in requests] == [6, 6]
        assert not any(request.images for request in requests)
        scheduler.cache.clear()
        gc.collect()
        late, text = scheduler.submit(ids, reply()), scheduler.submit([1, 5], reply())
        with pytest.raises(BareloopError, match=r"^an image of this prompt is no longer in memory; send it again$"):
            tokens(late)
        assert len(tokens(text)) == 6


def test_log_probabilities_of_a_prompt_leave_out_the_vectors_of_images(llm):
    ids = prompts(llm)[3]
    expected = llm.logits(ids).log_softmax(-1)
    with Scheduler(llm, prefill_chunk=16) as scheduler:
        request = scheduler.submit(ids, reply(1), prompt_logprobs=2)
        tokens(request)
    entries = request.prompt_logprobs
    assert len(entries) == len(ids)
    for position, (token, entry) in enumerate(zip(ids, entries, strict=True)):
        assert (entry is None) == (position == 0 or is_image_id(token))
        if entry is not None:
            assert entry[0] == pytest.approx(float(expected[position - 1, token]), abs=1e-4)
            assert all(math.isfinite(value) for _, value in entry[1])


@pytest.mark.parametrize("draft", ["prompt", "model"])
def test_drafts_leave_the_reply_as_it_is(tiny, draft):
    plain = LLM.load(tiny.folder, device="cpu", dtype="float32")
    name = "prompt" if draft == "prompt" else tiny.folder
    drafting = LLM.load(tiny.folder, device="cpu", dtype="float32", draft=name)
    texts, params = prompts(plain), reply(24)
    assert prompts(drafting) == texts
    expected = [completion.token_ids for completion in plain.generate(texts, params)]
    assert [completion.token_ids for completion in drafting.generate(texts, params)] == expected


def test_a_grammar_and_penalties_hold_after_an_image(llm):
    ids = prompts(llm)[0]
    (found,) = llm.generate([ids], SamplingParams(max_new_tokens=20, grammar=Grammar.regex("[0-9]{3}x")))
    assert re.fullmatch("[0-9]{3}x", found.text or "")
    (varied,) = llm.generate([ids], reply(8, repetition_penalty=1e5))
    assert len({*varied.token_ids}) == 8


def test_a_conversation_about_an_image_computes_only_the_new_turn(llm):
    template = llm.chat_template
    first = template.encode(MESSAGES)
    with Scheduler(llm, exact=False) as scheduler:
        request = scheduler.submit(first, reply(4), continues=False)
        text = "".join(event.text for event in request)
        more = [*MESSAGES, {"role": "assistant", "content": text}, {"role": "user", "content": "And its colour?"}]
        second = scheduler.submit(template.encode(more), reply(4), continues=False)
        tokens(second)
        assert second.cached_tokens >= len(first)


def test_chat_takes_images_and_a_text_model_says_that_it_takes_none(llm, tmp_path, tiny):
    (tmp_path / "cat.png").write_bytes(CAT)
    completion = llm.chat(MESSAGES, reply(4))
    assert completion.usage.prompt_tokens == len(llm.chat_template.encode(MESSAGES))
    part = {"type": "image", "image": tmp_path / "cat.png"}
    from_file = [{"role": "user", "content": [part, MESSAGES[0]["content"][1]]}]
    assert llm.chat(from_file, reply(4)).token_ids == completion.token_ids
    with pytest.raises(BareloopError, match="this model takes no images"):
        LLM.load("demo", device="cpu").chat(MESSAGES)
