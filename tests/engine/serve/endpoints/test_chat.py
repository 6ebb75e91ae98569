"""/v1/chat/completions, as OpenAI's clients, open-webui and vLLM's tests use it."""

from __future__ import annotations

import json

import pytest

from engine import SamplingParams
from engine.serve.generation import Generation

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(client, status=200, **body):
    answer = client.post("/v1/chat/completions", json={"messages": QUESTION, "temperature": 0, "max_tokens": 12} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_reply_equals_the_engines(client, llm):
    expected = llm.chat(QUESTION, SamplingParams(max_new_tokens=12))
    answer = chat(client)
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert answer["usage"]["prompt_tokens"] == len(llm.chat_template.encode(QUESTION))


def test_a_stream_has_role_then_content_then_the_reason(client, events):
    whole = chat(client, logprobs=True, top_logprobs=2)["choices"][0]
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    chunks = events("/v1/chat/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:-1]]
    assert all(delta["content"] and set(delta) == {"content"} for delta in deltas[:-1]) and deltas[-1] == {}
    assert "".join(delta["content"] for delta in deltas[:-1]) == whole["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * (len(chunks) - 2) + [whole["finish_reason"]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["prompt_tokens"] > 0
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    assert [entry for part in parts if part for entry in part["content"]] == whole["logprobs"]["content"]


def test_each_chunk_of_a_stream_has_the_log_probabilities_of_its_own_text(events, monkeypatch):
    one_by_one = Generation.__aiter__

    async def together(generation: Generation):
        yield [event async for part in one_by_one(generation) for event in part]

    monkeypatch.setattr(Generation, "__aiter__", together)
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 12, "logprobs": True, "stream": True}
    chunks = [chunk["choices"][0] for chunk in events("/v1/chat/completions", body)]
    told = [[entry["token"] for entry in (chunk["logprobs"] or {"content": []})["content"]] for chunk in chunks]
    assert len(told) > 5
    assert ["".join(tokens) for tokens in told] == [chunk["delta"].get("content") or "" for chunk in chunks]


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
@pytest.mark.parametrize("continuous", [None, False, True])
def test_usage_comes_in_a_stream_where_it_is_wanted(events, options, continuous):
    if options is not None:
        options = options | {"continuous_usage_stats": continuous}
    body = {"messages": QUESTION, "max_tokens": 3, "stream": True, "ignore_eos": True, "stream_options": options}
    chunks = events("/v1/chat/completions", body)
    wanted = bool(options and options["include_usage"])
    assert [chunk for chunk in chunks if not chunk["choices"]] == chunks[-1:] * wanted
    assert all(("usage" in chunk) == wanted for chunk in chunks)
    if wanted:
        counts = [chunk["usage"]["completion_tokens"] if chunk["usage"] else None for chunk in chunks]
        assert counts[-1] == 3
        assert counts == sorted(counts) if continuous else {*counts[:-1]} == {None}


def test_without_logprobs_there_are_none(client, events):
    assert chat(client)["choices"][0]["logprobs"] is None
    chunks = events("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 2, "stream": True})
    assert {chunk["choices"][0]["logprobs"] for chunk in chunks} == {None}


def test_fields_that_nobody_knows_are_ignored(client):
    plain = chat(client)["choices"]
    message = QUESTION[0] | {"mood": "curious", "files": []}
    assert chat(client, messages=[message], mood={"is": "good"}, id_slot=0)["choices"] == plain


@pytest.mark.parametrize("top", [0, 3])
def test_logprobs_join_to_the_content(client, top):
    (choice,) = chat(client, logprobs=True, top_logprobs=top)["choices"]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == top for entry in entries)
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in entries if top)


def test_choices_with_a_seed_are_distinct_and_the_same_again(client):
    first, again = (chat(client, n=4, temperature=1.5, seed=3)["choices"] for _ in range(2))
    texts = [choice["message"]["content"] for choice in first]
    assert texts == [choice["message"]["content"] for choice in again]
    assert len(set(texts)) > 1 and [choice["index"] for choice in first] == [0, 1, 2, 3]


def test_a_conversation_finds_its_beginning_in_the_cache(client):
    long = [{"role": "user", "content": "Tell me about the sun, the moon and the stars. " * 5}]
    first = chat(client, messages=long)
    more = [*long, {"role": "assistant", "content": first["choices"][0]["message"]["content"]}, *QUESTION]
    usage = chat(client, messages=more)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1


def test_a_last_assistant_message_is_continued(client, llm):
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of"}]
    expected = llm.chat(messages, SamplingParams(max_new_tokens=12)).text
    for flags in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        assert chat(client, messages=messages, **flags)["choices"][0]["message"]["content"] == expected


def test_json_object_and_schema_give_json(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    (choice,) = chat(client, response_format=form, max_tokens=40)["choices"]
    assert json.loads(choice["message"]["content"])["city"] in ("Paris", "Rome")
    assert choice["finish_reason"] == "stop"
    content = chat(client, response_format={"type": "json_object"}, max_tokens=20)["choices"][0]["message"]["content"]
    assert content.lstrip().startswith("{")


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_required_and_named_tools_are_called(client, events, choice):
    body = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 60}
    (answer,) = chat(client, **body)["choices"]
    (call,) = answer["message"]["tool_calls"]
    assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None
    assert call["type"] == "function" and call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    chunks = events("/v1/chat/completions", {"messages": QUESTION, "temperature": 0, "stream": True} | body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert parts[0]["function"]["name"] == "weather" and parts[0]["id"].startswith("call_")
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_tools_answer_goes_back_into_the_conversation(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert chat(client, messages=messages, tools=[TOOL])["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": 42}]}, "messages[0].content"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": False, "stream_options": {"include_usage": False}}, "stream_options"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"seed": 2**63}, "seed"),
        ({"messages": [*QUESTION, *[{"role": "assistant", "content": "Well,"}] * 2]}, "messages"),
        ({"n": 0}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"response_format": {"type": "sound"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
    ],
)
def test_bad_fields_are_refused_with_their_name(client, body, param):
    error = chat(client, 400, **body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_an_unknown_model_is_named_with_those_that_are_served(client):
    error = chat(client, 404, model="gpt-9")["error"]
    assert error["code"] == "model_not_found" and "gpt-9" in error["message"] and "demo" in error["message"]


def test_timings_come_if_wanted(client, events):
    assert chat(client, timings_per_token=True)["timings"]["predicted_n"] > 0
    body = {"messages": QUESTION, "max_tokens": 4, "stream": True, "timings_per_token": True}
    body["stream_options"] = {"include_usage": True}
    first, *others = events("/v1/chat/completions", body)
    assert "timings" not in first and all("timings" in chunk for chunk in others)


@pytest.mark.parametrize("content", [[{"type": "image_url"}], 5])
def test_a_refusal_is_reported_once(running, client, monkeypatch, content):
    reported = []
    monkeypatch.setattr(running.observer, "finished", reported.append)
    chat(client, 400, messages=[{"role": "user", "content": content}])
    assert client.get("/v1/models", headers={"host": "other.example"}).status_code == 403
    assert [served.status for served in reported] == [400, 403]
