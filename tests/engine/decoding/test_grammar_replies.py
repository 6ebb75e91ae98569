"""Replies of real models within grammars: they match, with the model's own log-probabilities, beside any others."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest
import torch

from engine import LLM, SamplingParams
from engine.decoding.grammar import Grammar
from engine.runtime.errors import BareloopError, UsageError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "friends"],
    "additionalProperties": False,
}
PATTERNS = ("yes|no", "[A-Z][a-z]{2,8}( [a-z]{1,9}){3,6}[.!]", r"[0-9]{3}-[0-9]{4}", '"[^"]{0,20}"')
PROMPT = "Tom had a big red ball."
WAYS = [{}, *({"temperature": 1.0, "seed": seed} for seed in range(3)), {"temperature": 2.0, "seed": 5, "top_k": 40}]


@pytest.fixture(scope="module")
def stories(shared) -> LLM:
    """A tokenizer of SentencePiece's kind, whose first space may be dropped."""
    return LLM.load(shared / "checkpoints" / "llama-tinystories-656k", device="cpu")


@pytest.fixture(scope="module")
def demo() -> LLM:
    """A tokenizer of bytes."""
    return LLM.load("demo", device="cpu")


@pytest.fixture(scope="module", params=["stories", "demo"])
def llm(request) -> LLM:
    return request.getfixturevalue(request.param)


def reply(llm: LLM, grammar: Grammar, prompt: str = PROMPT, **params):
    return llm.generate([prompt], SamplingParams(**{"max_new_tokens": 200} | params, grammar=grammar))[0]


def check_schema(text: str) -> None:
    value = json.loads(text)
    assert list(value) == list(SCHEMA["properties"])
    assert len(value["name"]) <= 12
    assert type(value["age"]) is int and 0 <= value["age"] <= 150
    assert value["kind"] in ("cat", "dog", "bird")
    assert 1 <= len(value["friends"]) <= 3 and all(len(name) <= 6 for name in value["friends"])


@pytest.mark.parametrize("way", WAYS)
def test_text_of_a_json_schema_is_json_of_this_schema(demo, way):
    completion = reply(demo, Grammar.json_schema(SCHEMA), **way)
    assert completion.finish_reason == "stop"
    check_schema(completion.text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_of_a_regex_matches_it_as_a_whole(llm, pattern):
    for way in WAYS:
        completion = reply(llm, Grammar.regex(pattern), **way)
        assert completion.finish_reason == "stop"
        assert re.fullmatch(pattern, completion.text)


def test_characters_of_several_tokens_are_whole(demo):
    for way in WAYS:
        assert re.fullmatch("(é|ü|🙂){2,5} ?", reply(demo, Grammar.regex("(é|ü|🙂){2,5} ?"), **way).text)


def test_a_real_model_answers_in_the_words_that_are_asked_for(smollm2):
    llm = LLM.load(smollm2, device="cpu", dtype="float32")  # in 16 bits "Paris" and "L" are equally likely
    message = {"role": "user", "content": "What is the capital of France? Answer in one word."}
    completion = llm.chat([message], SamplingParams(grammar=Grammar.regex("London|Paris|Rome")))
    assert (completion.text, completion.finish_reason) == ("Paris", "stop")
    message = {"role": "user", "content": "Describe a pet as JSON."}
    check_schema(llm.chat([message], SamplingParams(grammar=Grammar.json_schema(SCHEMA))).text)


def test_log_probabilities_are_the_models_own(llm):
    """They are not renormalised to what the grammar allows, and the alternatives are those of the model."""
    grammar = Grammar.regex("(zebra|quartz|xylophone)( (zebra|quartz)){2}")
    ids = llm.encode(PROMPT)
    for way in WAYS[:2]:
        params = SamplingParams(grammar=grammar, logprobs=3, **way)
        events = list(llm.stream(PROMPT, params))
        tokens = [event.token_id for event in events]
        logprobs = llm.logits([*ids, *tokens])[len(ids) - 1 : -1].log_softmax(-1)
        found = torch.tensor([event.logprob for event in events])
        assert torch.allclose(found, logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0], atol=1e-3)
        best = logprobs.topk(3).indices.tolist()
        assert [[token for token, _ in event.top_logprobs] for event in events] == best
        assert any(event.token_id not in row for event, row in zip(events, best, strict=True))


def test_requests_with_and_without_grammars_are_as_alone(llm):
    grammars = [Grammar.regex(pattern) for pattern in PATTERNS]
    grammars += [Grammar.lark('start: "a"+ "b" /[cd]{3}/'), None]
    if "{" in llm.tokenizer.decode(llm.tokenizer.encode("{")):
        grammars += [Grammar.json_schema(SCHEMA), Grammar.json_object()]
    pairs = list(itertools.product(grammars, WAYS[:3]))
    params = [SamplingParams(max_new_tokens=40, logprobs=1, grammar=grammar, **way) for grammar, way in pairs]
    prompts = [PROMPT, "Once upon a time"] * len(params)
    prompts = prompts[: len(params)]
    alone = [llm.generate([prompt], each)[0] for prompt, each in zip(prompts, params, strict=True)]
    assert llm.generate(prompts, params) == alone


def test_a_complete_text_ends_the_reply_without_another_token(llm):
    for ignore_eos in (False, True):
        completion = reply(llm, Grammar.regex("yes|no"), ignore_eos=ignore_eos)
        assert completion.finish_reason == "stop"
        assert completion.token_ids[-1] not in llm.eos_token_ids
        assert completion.text in ("yes", "no")


def test_a_text_that_may_go_on_ends_with_eos_or_at_its_length(llm):
    """Even if EOS is ignored: in a grammar it is the end of the text, wherever this may end, and nowhere else."""
    eos = llm.eos_token_ids[0]
    likely = {"logit_bias": {eos: 50.0}}
    for ignore_eos in (False, True):
        completion = reply(llm, Grammar.regex("[a-z ]{5,}"), ignore_eos=ignore_eos, **likely)
        assert completion.finish_reason == "stop"
        assert completion.token_ids.index(eos) == len(completion.token_ids) - 1
        assert re.fullmatch("[a-z ]{5,}", completion.text)
        never = reply(llm, Grammar.regex("[a-z ]*"), ignore_eos=ignore_eos, logit_bias={eos: -50.0}, max_new_tokens=9)
        assert (never.finish_reason, len(never.token_ids)) == ("length", 9)
        assert re.fullmatch("[a-z ]*", never.text)


def test_stop_strings_and_stop_tokens_end_a_text_before_the_grammar_does(llm):
    grammar = Grammar.regex("one two [a-z]+")
    completion = reply(llm, grammar, stop=[" two"])
    assert (completion.text, completion.finish_reason) == ("one", "stop")
    full = reply(llm, grammar, max_new_tokens=20)
    stopped = reply(llm, grammar, stop_token_ids=[full.token_ids[1]], max_new_tokens=20)
    assert (stopped.token_ids, stopped.finish_reason) == (full.token_ids[:2], "stop")


def test_a_dead_end_ends_only_its_own_request(stories):
    """The vocabulary of this model has no brace."""
    grammars = [Grammar.regex("ab{2}c"), Grammar.regex("ab[{]c"), None]
    params = [SamplingParams(max_new_tokens=12, grammar=grammar) for grammar in grammars]
    alone = [stories.generate([PROMPT], params[index])[0].token_ids for index in (0, 2)]
    with stories.scheduler() as scheduler:
        requests = [scheduler.submit(stories.encode(PROMPT), each) for each in params]
        while scheduler.step() is not None:
            pass
        with pytest.raises(
            BareloopError, match=r"the regex 'ab\[{\]c', after [12] tokens of a reply: no token"
        ) as caught:
            list(requests[1])
        assert "\n" not in str(caught.value)
        assert [[event.token_id for event in requests[index]] for index in (0, 2)] == alone
        scheduler.cache.clear()
        assert scheduler.state.nbytes == 0


def test_a_bias_against_all_that_a_grammar_allows_is_one_line(llm):
    bias = dict.fromkeys(range(llm.config.vocab_size), -math.inf)
    for grammar in (None, Grammar.regex("[a-z]+")):
        with pytest.raises(
            BareloopError, match=r"logit_bias excludes every token that may follow the \d+ tokens so far"
        ):
            llm.generate([PROMPT], SamplingParams(grammar=grammar, logit_bias=bias))


def test_a_grammar_that_cannot_be_used_is_one_line(tiny_llama, stories, prompt):
    with pytest.raises(BareloopError, match="a grammar needs a tokenizer"):
        LLM.load(tiny_llama.folder, device="cpu").generate([prompt(5)], SamplingParams(grammar=Grammar.regex("a")))
    with pytest.raises(UsageError, match="the regex '\\[' cannot be used"):
        Grammar.regex("[")
