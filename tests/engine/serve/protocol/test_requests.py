"""Fields, defaults and limits of the requests, and what the engine is asked for."""

from __future__ import annotations

import json

import pytest

from engine.decoding.grammar import Grammar
from engine.decoding.params import LARGEST, SamplingParams
from engine.serve.protocol.common import MAX_TEXT, StreamOptions
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.fields import read_request
from engine.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    sampling_params,
)

USER = {"role": "user", "content": "Hi"}


def chat(**values):
    return read_request(ChatRequest, json.dumps({"messages": [USER]} | values).encode())


def completion(prompt="Once", **values):
    return read_request(CompletionRequest, json.dumps({"prompt": prompt} | values).encode())


def refused(read, **values):
    with pytest.raises(ApiError) as caught:
        read(**values)
    assert caught.value.status == 400
    return caught.value


def test_defaults_of_a_chat():
    request = chat()
    assert (request.n, request.stream, request.stops, request.max_new_tokens) == (1, False, (), None)
    assert (request.stream_options, request.parallel_tool_calls) == (StreamOptions(), True)
    assert sampling_params(request, {}, 7) == SamplingParams(temperature=1.0, max_new_tokens=7)


def test_a_completion_has_16_tokens_unless_it_says_otherwise():
    assert completion().max_new_tokens == 16
    assert completion(max_tokens=0, echo=True).max_new_tokens == 0
    assert refused(completion, max_tokens=0).param == "max_tokens"


def test_max_completion_tokens_comes_before_max_tokens():
    assert chat(max_tokens=5).max_new_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=3).max_new_tokens == 3


def test_n_predict_is_llama_cpps_name_of_max_tokens():
    assert chat(n_predict=9).max_new_tokens == completion(n_predict=9).max_new_tokens == 9
    assert chat(n_predict=9, max_tokens=5).max_new_tokens == 5
    assert chat(n_predict=-1).max_new_tokens is None
    assert completion(n_predict=-1).max_new_tokens > 1_000_000


@pytest.mark.parametrize("read", [chat, completion])
def test_json_schema_is_a_short_form_that_another_format_replaces(read):
    assert read().wanted_format is None
    for form in (None, {"type": "text"}):
        assert read(json_schema={"const": 3}, response_format=form).wanted_format == {"json_schema": {"const": 3}}
    form = {"type": "json_object"}
    assert read(json_schema={"const": 3}, response_format=form).wanted_format == form


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_are_texts_or_ids_one_or_several(prompt, prompts):
    assert completion(prompt).prompts == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt"),
        ([""], "prompt"),
        ([1, -1], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([[1], [2, 2.5]], "prompt[1][1]"),
        ({"text": "a"}, "prompt"),
        (["a"] * 129, "prompt"),
    ],
)
def test_other_prompts_are_refused_where_they_are_wrong(prompt, param):
    assert refused(completion, prompt=prompt).param == param


def test_whole_numbers_may_be_written_with_a_point():
    request = completion([1.0, 2], n=2.0)
    assert (request.prompt, request.n) == ([1, 2], 2)
    assert {*map(type, request.prompt)} == {int}


def test_prompts_times_n_are_limited():
    assert completion(["a", "b"], n=64).n == 64
    error = refused(completion, prompt=["a", "b", "c"], n=64)
    assert (error.param, error.message) == ("n", "n = 64 of 3 prompts are 192 replies: use up to 128")


@pytest.mark.parametrize(
    ("values", "param", "message"),
    [
        ({"temperature": 2.1}, "temperature", "temperature = 2.1: use a number from 0 to 2"),
        ({"temperature": "0"}, "temperature", "temperature = '0': use a number from 0 to 2"),
        ({"temperature": True}, "temperature", "temperature = True: use a number"),
        ({"top_p": 0}, "top_p", "top_p = 0: use a number above 0, up to 1"),
        ({"n": 0}, "n", "n = 0: use a whole number from 1 to 64"),
        ({"n": 1.5}, "n", "n = 1.5: use a whole number"),
        ({"seed": 2**63}, "seed", "seed = 9223372036854775808: use a whole number from -9223372036854775808"),
        ({"presence_penalty": -3}, "presence_penalty", "presence_penalty = -3: use a number from -2 to 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias has 'x', which is not a token id such as '1504'"),
        ({"logit_bias": {"1": 101}}, "logit_bias['1']", "logit_bias['1'] = 101: use a number from -100 to 100"),
        ({"stop": ["a", ""]}, "stop[1]", "stop[1] has 0 characters: use a text that is not empty"),
        ({"stop": ["a"] * 65}, "stop", "stop has 65 texts: use a list of up to 64 texts"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids", "has 1,025 token ids: use a list of up to 1,024 token ids"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options needs stream"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "use true or false"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens = -1: use a whole number from"),
        ({"response_format": {"type": "sound"}}, "response_format", 'use {"type": "text"}, {"type": "json_object"}'),
        ({"response_format": {"type": "json_object", "schema": 1}}, "response_format.schema", "= 1: use an object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 100_000]}}}},
            "response_format.json_schema.schema",
            "has 100,013 characters of JSON: use up to 100,000",
        ),
        ({"min_tokens": 3}, "min_tokens", "min_tokens = 3 is not supported: leave it out"),
        ({"guided_json": {"type": "object"}}, "guided_json", "is not supported: use response_format"),
        ({"best_of": 2}, "best_of", "best_of = 2 is not supported: use n"),
        ({"skip_special_tokens": False}, "skip_special_tokens", "= False is not supported"),
        ({"repeat_penalty": 0}, "repeat_penalty", "use a number from 1e-06 to 1e+06"),
        ({"n_predict": 0}, "n_predict", "n_predict = 0: use a whole number from 1 to 2147483647, or -1"),
    ],
)
@pytest.mark.parametrize("read", [chat, completion])
def test_both_kinds_refuse_and_name_the_field_its_value_and_the_limit(read, values, param, message):
    error = refused(read, **values)
    assert error.param == param
    assert error.message.startswith(param)
    assert message in error.message


@pytest.mark.parametrize(
    ("values", "param", "message"),
    [
        ({"messages": None}, "messages", "messages is missing: use a list of 1 to 4,096 messages"),
        ({"messages": []}, "messages", "messages has 0 messages"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role", "is missing"),
        ({"messages": [USER] * 4097}, "messages", "messages has 4,097 messages"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs: set it to true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"logprobs": 2}, "logprobs", "use true or false"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "is not possible with stream"),
        ({"functions": [{}]}, "functions", "is not supported: use tools"),
        ({"function_call": {"name": "f"}}, "function_call", "is not supported: use tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities", "is not supported"),
        ({"chat_template": "{{ 1 }}"}, "chat_template", "the model's own is used"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "is set by the server"),
        ({"chat_template_kwargs": {"a": "x" * 100_000}}, "chat_template_kwargs", "characters of JSON"),
        ({"enable_thinking": False}, "enable_thinking", "use chat_template_kwargs"),
        ({"tools": ["f"]}, "tools[0]", "use an object"),
        ({"tools": [{}] * 129}, "tools", "tools has 129 tools: use a list of up to 128 tools"),
        ({"tool_choice": "maybe"}, "tool_choice", "use 'none' or 'auto' or 'required', or {\"type\""),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "add_generation_prompt",
            "add_generation_prompt and continue_final_message exclude each other",
        ),
    ],
)
def test_what_a_chat_refuses(values, param, message):
    error = refused(chat, **values)
    assert error.param == param
    assert message in error.message


def test_fields_without_effect_are_accepted_and_so_are_neutral_values():
    neutral = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "best_of": 1,
        "min_tokens": 0,
    }
    for read in (chat, completion):
        assert read(**neutral, skip_special_tokens=True, grammar="") == read()
    silent = {"reasoning_effort": "low", "verbosity": "high", "functions": [], "modalities": ["text"], "audio": None}
    assert chat(**silent, parallel_tool_calls=True, safety_identifier="x") == chat()
    assert completion(suffix="", cache_prompt=True) == completion()


def test_the_request_comes_before_the_model_and_the_model_before_openai():
    model = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    params = sampling_params(chat(temperature=0, top_k=-1), model, 5)
    assert params == SamplingParams(temperature=0, top_k=0, top_p=0.9, repetition_penalty=1.1, max_new_tokens=5)
    params = sampling_params(chat(), {"repetition_penalty": 1.1}, 5)
    assert (params.temperature, params.top_p, params.repetition_penalty) == (1.0, 1.0, 1.1)
    for read in (chat, completion):  # both names, as our chat sends them
        for fields in ({"repeat_penalty": 1.2}, {"repeat_penalty": 1.3, "repetition_penalty": 1.2}):
            assert sampling_params(read(**fields), {"repetition_penalty": 1.1}, 5).repetition_penalty == 1.2


def test_everything_that_changes_sampling_reaches_the_engine():
    grammar = Grammar.json_object()
    values = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "seed": 9,
        "ignore_eos": True,
    }
    lists = {"stop": "\n", "stop_token_ids": [4, 5], "logit_bias": {"7": -100}}
    for request in (chat(**values, **lists), completion(**values, **lists)):
        assert sampling_params(request, {}, 8, grammar=grammar) == SamplingParams(
            **values,
            stop=("\n",),
            stop_token_ids=(4, 5),
            logit_bias={7: -100},
            max_new_tokens=8,
            grammar=grammar,
        )


def test_each_choice_has_its_own_seed_within_64_bits():
    assert [sampling_params(chat(seed=5), {}, 1, index).seed for index in range(3)] == [5, 6, 7]
    assert sampling_params(chat(seed=2**63 - 1), {}, 1, 1).seed == -(2**63)
    assert sampling_params(chat(), {}, 1, 3).seed is None


@pytest.mark.parametrize(
    ("request_", "alternatives"),
    [
        (chat(), 0),
        (chat(logprobs=True), 1),
        (chat(logprobs=True, top_logprobs=0), 1),
        (chat(logprobs=True, top_logprobs=5), 5),
        (completion(), 0),
        (completion(logprobs=0), 1),
        (completion(logprobs=20), 20),
    ],
)
def test_log_probabilities_are_computed_for_at_least_the_chosen_token(request_, alternatives):
    assert sampling_params(request_, {}, 1).logprobs == alternatives


def test_what_the_engine_refuses_names_the_field():
    with pytest.raises(ApiError, match="temperature = -1") as caught:
        sampling_params(chat(), {"temperature": -1}, 1)
    assert (caught.value.status, caught.value.param) == (400, "temperature")
    with pytest.raises(ApiError, match="max_new_tokens = 0") as caught:
        sampling_params(chat(), {}, 0)
    assert caught.value.param == "max_tokens"


def test_the_api_allows_no_more_than_the_engine():
    params = sampling_params(chat(repetition_penalty=LARGEST, stop=["x"] * 64, seed=-(2**63)), {}, 2**31 - 1)
    assert params.repetition_penalty == LARGEST
    assert sampling_params(chat(repetition_penalty=1 / LARGEST), {}, 1).repetition_penalty == 1 / LARGEST


def tokenize(**values):
    return read_request(TokenizeRequest, json.dumps(values).encode())


def test_a_text_to_tokenize_comes_as_prompt_with_bos_or_as_content_without():
    request = tokenize(prompt="a")
    assert (request.text, request.adds_special_tokens) == ("a", True)
    assert tokenize(prompt="a", add_special_tokens=False).adds_special_tokens is False
    request = tokenize(content="b", with_pieces=True)
    assert (request.text, request.adds_special_tokens, request.with_pieces) == ("b", False, True)
    assert tokenize(content="", add_special=True).adds_special_tokens is True


def test_messages_to_tokenize_are_a_chat():
    request = tokenize(messages=[USER], tools=[{"type": "function"}], add_generation_prompt=False)
    assert request.as_chat() == chat(tools=[{"type": "function"}], add_generation_prompt=False)


@pytest.mark.parametrize("values", [{}, {"prompt": "a", "content": "b"}, {"content": "a", "messages": [USER]}])
def test_there_is_exactly_one_text_to_tokenize(values):
    assert "use one of prompt, content, messages" in refused(tokenize, **values).message


def test_ids_and_texts_of_the_other_requests():
    assert read_request(DetokenizeRequest, b'{"tokens": []}').tokens == []
    assert read_request(EmbeddingRequest, b'{"input": [[1], [2]]}').encoding_format == "float"
    for kind, body, param in (
        (DetokenizeRequest, b'{"tokens": [1, -1]}', "tokens[1]"),
        (DetokenizeRequest, b"{}", "tokens"),
        (EmbeddingRequest, b'{"input": ""}', "input"),
        (EmbeddingRequest, b'{"input": "a", "encoding_format": "int8"}', "encoding_format"),
    ):
        with pytest.raises(ApiError) as caught:
            read_request(kind, body)
        assert caught.value.param == param


def test_a_text_to_tokenize_is_as_long_as_a_prompt_may_be():
    assert len(tokenize(prompt="x" * MAX_TEXT).text) == MAX_TEXT
    for name in ("prompt", "content"):
        error = refused(tokenize, **{name: "x" * (MAX_TEXT + 1)})
        assert (error.param, error.message) == (name, f"{name} has 2,000,001 characters: use up to 2,000,000")
