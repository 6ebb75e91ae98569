"""Speculative decoding: the text is that of plain decoding, whatever is drafted, and nothing is left of a draft."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from engine import LLM, Completion, SamplingParams
from engine.decoding.grammar import Grammar
from engine.decoding.scheduling.scheduler import Scheduler
from engine.decoding.speculation import DraftModel, Speculator

WINDOW = 256
FAMILIES = ("llama", "mistral-window", "gemma2")  # full attention; windows; both, with soft caps
DRAFTS = ("prompt", "itself", "similar", "other")
PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=1.0, top_p=0.9, top_k=20, seed=2, logprobs=3),
    SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3, logprobs=1),
    SamplingParams(temperature=0.7, min_p=0.05, repetition_penalty=1.1, seed=3),
    SamplingParams(logit_bias={5: 4.0, 17: -math.inf}, stop_token_ids=(9, 23)),
]
NO_EOS = [SamplingParams(**vars(params) | {"max_new_tokens": 20, "ignore_eos": True}) for params in PARAMS]


class AtRandom(Speculator):
    """Drafts random numbers of tokens, so that every boundary is met and no clock decides."""

    def __init__(self, drafter, seed: int = 0) -> None:
        super().__init__(drafter)
        self.chooser = random.Random(seed)

    def _plan(self, replies):
        counts, room = [], 32 - len(replies)
        for reply, kind in zip(replies, self._kinds, strict=True):
            limit = 0 if kind is None else min(reply.remaining - 1, room)
            counts.append(min(self.chooser.choice((0, 1, 2, 3, 5, 9)), limit))
            room -= counts[-1]
        return counts


def with_draft(model: LLM, draft: str | LLM, seed: int = 0) -> LLM:
    """The same model with a draft. Its speculators are in `speculators`."""
    result = copy.copy(model)
    result.draft = "prompt" if isinstance(draft, str) else draft
    result.check_draft()
    made: list[Speculator] = []

    def speculator() -> Speculator:
        made.append(AtRandom(LLM.speculator(result).drafter, seed))
        return made[-1]

    result.speculator, result.speculators = speculator, made
    return result


def draft_models(folder, other_folder, **options) -> dict[str, LLM | str]:
    """A draft model that is always right, one that often is, and one that hardly is."""
    itself, similar = (LLM.load(folder, device="cpu", **options) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in filter(torch.is_floating_point, similar.model.parameters()):
            parameter.add_(0.15 * parameter.std() * torch.randn_like(parameter))
    other = LLM.load(other_folder, device="cpu", **options)
    return {"prompt": "prompt", "itself": itself, "similar": similar, "other": other}


@pytest.fixture(scope="module")
def tinies(draw_tiny):
    """Of each family a model, and another one of the same vocabulary."""
    return {name: [draw_tiny(name, seed).folder for seed in (0, 1)] for name in FAMILIES}


@pytest.fixture(scope="module")
def drafts(tinies) -> dict[str, LLM | str]:
    return draft_models(*tinies["llama"], dtype="bfloat16")


@pytest.fixture(scope="module")
def plain(tinies) -> LLM:
    return LLM.load(tinies["llama"][0], device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def stories(shared) -> LLM:
    return LLM.load(shared / "checkpoints" / "llama-tinystories-656k", device="cpu")


@pytest.fixture(scope="module")
def story_drafts(shared) -> dict[str, LLM | str]:
    folder = shared / "checkpoints" / "llama-tinystories-656k"
    return draft_models(folder, folder)


@pytest.mark.parametrize(
    ("family", "dtype", "quant"),
    [
        ("llama", "float32", "none"),
        *itertools.product(["llama"], ["bfloat16"], ("none", "int8", "int4")),
        ("mistral-window", "bfloat16", "none"),
        ("gemma2", "float32", "none"),
    ],
)
def test_a_text_and_its_logprobs_are_those_of_plain_decoding(tinies, prompt, family, dtype, quant):
    """Greedy and sampled, with penalties, bias and stop tokens, together and alone; the last ends with the window."""
    options = {"dtype": dtype, "quant": quant}
    model = LLM.load(tinies[family][0], device="cpu", **options)
    prompts = [prompt(length, length) for length in (5, 11, 60, 150, 200, WINDOW - 9)]
    expected = model.generate(prompts, NO_EOS)
    for name, draft in draft_models(*tinies[family], **options).items():
        drafting = with_draft(model, draft)
        assert drafting.generate(prompts, NO_EOS) == expected
        assert drafting.generate(prompts[2:3], NO_EOS[2]) == expected[2:3]
        statistics = drafting.speculators[0].statistics
        assert statistics.drafted > 0
        assert name != "similar" or 0 < statistics.right < statistics.drafted
        assert statistics.tokens == sum(completion.usage.completion_tokens - 1 for completion in expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_drafts_of_the_model_itself_are_all_right(tinies, prompt, dtype):
    model, itself = (LLM.load(tinies["llama"][0], device="cpu", dtype=dtype) for _ in range(2))
    drafting = with_draft(model, itself)
    drafting.generate([prompt(9)], SamplingParams(max_new_tokens=100, ignore_eos=True))
    statistics = drafting.speculators[0].statistics
    assert statistics.share_right == 1
    assert (statistics.tokens, statistics.steps) == (99, 99 - statistics.drafted)


@dataclass(frozen=True)
class Plain:
    """Requests, and their replies by plain decoding."""

    prompts: list[list[int]] | list[str]
    params: list[SamplingParams]
    replies: list[Completion]

    @staticmethod
    def together(model: LLM, prompts: list[list[int]] | list[str], params: list[SamplingParams]) -> Plain:
        return Plain(prompts, params, model.generate(prompts, params))


@pytest.fixture(scope="module")
def endings(plain, prompt) -> Plain:
    """Replies that end at each number of new tokens, and at a stop token in each place."""
    full = plain.generate([prompt(9)], SamplingParams(max_new_tokens=24, ignore_eos=True))[0].token_ids
    params = [SamplingParams(max_new_tokens=number, ignore_eos=True) for number in range(1, 24)]
    params += [SamplingParams(stop_token_ids=[token], ignore_eos=True, max_new_tokens=24) for token in full]
    return Plain.together(plain, [prompt(9)] * len(params), params)


@pytest.fixture(scope="module")
def endings_of_the_window(plain, prompt) -> Plain:
    """Replies that end with the window, at each distance from the prompt's end."""
    prompts = [prompt(length) for length in range(WINDOW - 12, WINDOW + 1)]
    expected = Plain.together(plain, prompts, [SamplingParams(ignore_eos=True)] * len(prompts))
    assert [len(completion.token_ids) for completion in expected.replies] == list(range(13, 0, -1))
    return expected


@pytest.mark.parametrize("name", DRAFTS)
def test_a_reply_ends_at_the_same_token_wherever_its_end_is(plain, drafts, endings, endings_of_the_window, name):
    for seed in range(3):
        assert with_draft(plain, drafts[name], seed).generate(endings.prompts, endings.params) == endings.replies
    expected = endings_of_the_window
    assert with_draft(plain, drafts[name], 2).generate(expected.prompts, expected.params) == expected.replies


@pytest.fixture(scope="module")
def stops(stories) -> Plain:
    """Stop strings of every length, from any place of the text."""
    full = stories.generate(["Once upon a time"], SamplingParams(max_new_tokens=40))[0].text
    strings = [full[start : start + length] for start in range(0, len(full) - 12, 9) for length in (1, 4, 11)]
    params = [SamplingParams(max_new_tokens=40, stop=[stop], logprobs=2) for stop in strings]
    expected = Plain.together(stories, ["Once upon a time"] * len(params), params)
    assert {completion.finish_reason for completion in expected.replies} == {"stop"}
    return expected


@pytest.mark.parametrize("name", ["prompt", "itself", "similar"])
def test_stop_strings_end_a_text_in_the_same_place(stories, story_drafts, stops, name):
    """All that is drafted after them is dropped."""
    assert with_draft(stories, story_drafts[name]).generate(stops.prompts, stops.params) == stops.replies


@pytest.fixture(scope="module")
def alone(plain, prompt) -> Plain:
    """Requests of all kinds, each by itself."""
    chooser = random.Random(4)
    prompts = [prompt(chooser.randrange(1, 60), seed) for seed in range(36)]
    params = [chooser.choice(NO_EOS) for _ in prompts]
    return Plain(prompts, params, [plain.generate([ids], each)[0] for ids, each in zip(prompts, params, strict=True)])


@pytest.mark.parametrize("name", DRAFTS)
def test_requests_that_come_and_are_cancelled_leave_no_row(plain, drafts, alone, name):
    """Requests that are not cancelled have their tokens as alone; nothing is left in the states of both models."""
    drafting, chooser = with_draft(plain, drafts[name]), random.Random(5)
    with Scheduler(drafting, max_rows=8, prefill_chunk=512) as scheduler:
        requests = []
        for pair in zip(alone.prompts, alone.params, strict=True):
            requests.append(scheduler.submit(*pair))
            for _ in range(chooser.randrange(5)):
                scheduler.step()
            if chooser.random() < 0.5:
                chooser.choice(requests[-5:]).cancel()
        while scheduler.step() is not None:
            pass
        found = [[event.token_id for event in request] for request in requests]
        cancelled = [request.finish_reason == "cancelled" for request in requests]
        assert 3 < sum(cancelled) < 30
        for tokens, reply, is_cut in zip(found, alone.replies, cancelled, strict=True):
            assert tokens == (reply.token_ids[: len(tokens)] if is_cut else reply.token_ids)
        scheduler.cache.clear()
        assert scheduler.state.nbytes == 0 and not scheduler.running
        drafter = scheduler.running.speculator.drafter
        if isinstance(drafter, DraftModel):
            assert drafter.state.nbytes == 0 and not drafter._sequences
            assert not any(cache._rows for cache in drafter.state.caches)
        else:
            assert not drafter._texts


def test_an_interrupt_while_drafting_leaves_the_scheduler_usable(plain, drafts, prompt, monkeypatch):
    drafting, params = with_draft(plain, drafts["similar"]), NO_EOS[0]
    with Scheduler(drafting) as scheduler:
        requests = [scheduler.submit(prompt(9, seed), params) for seed in range(3)]
        for _ in range(8):
            scheduler.step()
        with monkeypatch.context() as patch:
            patch.setattr(drafting.draft.model, "logits", lambda hidden: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                while scheduler.step() is not None:
                    pass
        assert {request.finish_reason for request in requests} == {"cancelled"}
        again = [scheduler.submit(prompt(9, seed), params) for seed in range(3)]
        found = [[event.token_id for event in request] for request in again]
        assert found == [reply.token_ids for reply in plain.generate([prompt(9, seed) for seed in range(3)], params)]
        assert scheduler.running.speculator.drafter.state.nbytes == 0


def test_a_draft_model_may_have_a_smaller_window_and_vocabulary(tinies, draw_tiny, prompt):
    """Padding at the end of the vocabulary differs between models of one family."""
    model = LLM.load(tinies["llama"][0], device="cpu", dtype="float32")
    small = draw_tiny("llama", 2, max_position_embeddings=96, vocab_size=100, eos_token_id=99)
    drafting = with_draft(model, "prompt")
    drafting.draft = LLM.load(small.folder, device="cpu", dtype="float32")
    prompts = [[*prompt(length, length), 127, 126] for length in (5, 60, 120)]
    params = [SamplingParams(**vars(each) | {"logit_bias": {101: 3.0, 120: 3.0}}) for each in NO_EOS[:3]]
    assert drafting.generate(prompts, params) == model.generate(prompts, params)
    assert drafting.speculators[0].statistics.drafted > 0


def test_tokens_drawn_with_drafts_follow_the_distribution(tinies, prompt):
    """Chi-square over three tokens of 800 seeds. A random seed would exceed the bound once in 10^6 runs."""
    model = LLM.load(tinies["llama"][0], device="cpu", dtype="float32")
    drafting = with_draft(model, draft_models(*tinies["llama"], dtype="float32")["similar"])
    count, ids = 800, prompt(5)
    params = [SamplingParams(temperature=6.0, top_k=3, seed=seed, max_new_tokens=3) for seed in range(count)]
    observed = Counter(tuple(reply.token_ids) for reply in drafting.generate([ids] * count, params))
    chances = {(): 1.0}
    for _ in range(3):
        chances = {
            (*text, token): share * float(value)
            for text, share in chances.items()
            for token, value in zip(*most_likely(model, [*ids, *text]), strict=True)
        }
    assert observed.keys() <= chances.keys()
    chi_square = sum((observed[text] - share * count) ** 2 / (share * count) for text, share in chances.items())
    assert chi_square < 26 + 4.75 * math.sqrt(2 * 26) + 12
    assert 0.2 < drafting.speculators[0].statistics.share_right < 0.9


def most_likely(model: LLM, ids: list[int]) -> tuple[list[int], list[float]]:
    """The three likeliest tokens, and their probabilities at temperature 6."""
    best = model.logits(ids)[-1].double().topk(3)
    return best.indices.tolist(), (best.values / 6).softmax(-1).tolist()


def test_a_grammar_and_a_draft_work_together(stories, story_drafts):
    grammar = Grammar.regex("(Once|There) [a-z]{3,6} [a-z ]{5,30}[.]")
    params = [
        SamplingParams(max_new_tokens=30, grammar=grammar),
        SamplingParams(max_new_tokens=30),
        SamplingParams(max_new_tokens=30, grammar=grammar, temperature=1.0, seed=4, logprobs=2),
        SamplingParams(max_new_tokens=30, temperature=1.0, seed=4),
    ]
    prompts = ["Tom had a big red ball."] * 4
    expected = stories.generate(prompts, params)
    for draft in story_drafts.values():
        assert with_draft(stories, draft).generate(prompts, params) == expected
