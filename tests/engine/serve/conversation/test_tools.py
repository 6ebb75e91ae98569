"""Tools of requests, and what real templates show a model of them."""

from __future__ import annotations

import copy
import json
import re

import pytest

from engine.serve.conversation.messages import prepare
from engine.serve.conversation.tools import MAX_TOOLS, ToolFormat, check
from engine.serve.protocol.errors import ApiError
from engine.text.template_worker import compile_template

QWEN_2, QWEN_3 = "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B"
LLAMA_1, LLAMA_2 = "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct"
NEMO, GEMMA, PHI = "mistralai-Mistral-Nemo-Instruct-2407", "google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name="get_weather", **function):
    return {"type": "function", "function": {"name": name} | function}


WEATHER = tool(description="The weather of a city.", parameters=PARAMETERS)
TIME = tool("get_time")
PARIS, ROME = ('{"city": "Paris"}', '{"city": "Rome"}')
CONVERSATION = [
    {"role": "user", "content": "Paris and Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
            for number, arguments in enumerate((PARIS, ROME))
        ],
    },
    {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]


@pytest.fixture(scope="session")
def template(shared):
    """The source of a template, and what it shows a model of messages and tools."""

    def show(name: str, messages, tools, **variables) -> tuple[ToolFormat, str]:
        source = (shared / "chat_templates" / f"{name}.jinja").read_text()
        tool_format = ToolFormat.of(source)
        text = compile_template(source, "2026-01-01").render(
            messages=tool_format.messages(prepare(messages), tools),
            tools=tools if tools and tool_format.native else None,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
            **variables,
        )
        return tool_format, text

    return show


def test_tools_are_kept_as_templates_print_them():
    sent = [tool(parameters=PARAMETERS, description="x", strict=True, extra=1) | {"more": 2}, TIME]
    before = copy.deepcopy(sent)
    choice = check(sent)
    assert json.dumps(choice.tools[0]) == json.dumps(tool(description="x", parameters=PARAMETERS))
    assert choice.tools[1] == TIME and sent == before


@pytest.mark.parametrize(
    ("tools", "choice", "parallel", "expected"),
    [
        (None, None, None, ("none", None, True, set())),
        ([], "auto", None, ("none", None, True, set())),
        ([], "none", False, ("none", None, False, set())),
        ([WEATHER, TIME], None, None, ("auto", None, True, {"get_weather", "get_time"})),
        ([WEATHER, TIME], "auto", False, ("auto", None, False, {"get_weather", "get_time"})),
        ([WEATHER, TIME], "none", None, ("none", None, True, set())),
        ([WEATHER, TIME], "required", True, ("required", None, True, {"get_weather", "get_time"})),
        ([WEATHER, TIME], tool("get_time"), True, ("required", "get_time", False, {"get_time"})),
    ],
)
def test_tool_choice(tools, choice, parallel, expected):
    result = check(tools, choice, parallel)
    assert (result.mode, result.name, result.parallel, result.names) == expected


BAD = [
    ({}, None, "tools"),
    ([TIME] * (MAX_TOOLS + 1), None, "tools"),
    ([TIME, WEATHER, TIME], None, "tools[2].function.name"),
    (["f"], None, "tools[0]"),
    ([{"function": {"name": "f"}}], None, "tools[0]"),
    ([{"type": "function"}], None, "tools[0]"),
    ([TIME, {"type": "web_search"}], None, "tools[1].type"),
    *(([tool(name)], None, "tools[0].function.name") for name in (None, "", "a b", "x" * 65, 'a"', "é", "a\n")),
    ([tool(description=["x"])], None, "tools[0].function.description"),
    ([tool(description="\ud83d")], None, "tools[0].function.description"),
    ([tool(parameters=[])], None, "tools[0].function.parameters"),
    ([tool(parameters={"type": "string"})], None, "tools[0].function.parameters"),
    ([tool(strict="yes")], None, "tools[0].function.strict"),
    (None, "required", "tool_choice"),
    ([], tool("get_time"), "tool_choice"),
    ([TIME], "any", "tool_choice"),
    ([TIME], 5, "tool_choice"),
    ([TIME], {"type": "function"}, "tool_choice"),
    ([TIME], {"type": "allowed_tools", "allowed_tools": {}}, "tool_choice.type"),
    ([TIME], {"type": "function", "function": {}}, "tool_choice.function.name"),
    ([TIME], tool("get_weather"), "tool_choice.function.name"),
]


@pytest.mark.parametrize(("tools", "choice", "param"), BAD)
def test_what_is_wrong_with_tools_is_refused_with_its_place(tools, choice, param):
    with pytest.raises(ApiError) as caught:
        check(tools, choice)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "tool" in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (QWEN_2, "hermes"),
        (QWEN_3, "hermes"),
        ("chujiezheng-qwen2.5-instruct", "hermes"),
        (LLAMA_1, "llama"),
        (LLAMA_2, "llama"),
        (NEMO, "mistral"),
        (GEMMA, "generic"),
        (PHI, "generic"),
        ("chujiezheng-llama-3-instruct", "generic"),
        ("chujiezheng-mistral-instruct", "generic"),
    ],
)
def test_the_format_is_found_in_the_template(shared, name, expected):
    tool_format = ToolFormat.of((shared / "chat_templates" / f"{name}.jinja").read_text())
    assert (tool_format.name, tool_format.native) == (expected, expected != "generic")
    assert tool_format.has_system_role == (name != GEMMA)


def test_without_a_known_format_tools_are_described():
    for source in (None, "", "{{ messages }}", "{% if tools %}<tool_call><function=x>", "{{ tools }}"):
        assert ToolFormat.of(source).name == "generic"


@pytest.mark.parametrize("name", [QWEN_2, QWEN_3])
def test_qwen_is_shown_tools_calls_and_results(template, name):
    _, text = template(name, CONVERSATION, [WEATHER, TIME])
    assert f"<tools>\n{json.dumps(WEATHER)}\n{json.dumps(TIME)}\n</tools>" in text
    calls = [
        f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>' for arguments in (PARIS, ROME)
    ]
    assert "<|im_start|>assistant\n" + "\n".join(calls) + "<|im_end|>" in text
    results = "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>\n<|im_start|>assistant\n" in text


def test_qwen3_is_shown_the_reasoning_between_its_calls(template):
    messages = copy.deepcopy(CONVERSATION)
    messages[1]["reasoning_content"] = "Two cities."
    _, text = template(QWEN_3, messages, [WEATHER])
    assert "<|im_start|>assistant\n<think>\nTwo cities.\n</think>\n\n<tool_call>" in text


@pytest.mark.parametrize("name", [LLAMA_1, LLAMA_2])
def test_llama_is_shown_calls_one_by_one_with_their_results(template, name):
    _, text = template(name, CONVERSATION, [WEATHER])
    assert '"name": "get_weather",\n        "description"' in text
    shown = re.findall(r"<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", text, re.DOTALL)[2:]
    calls = [f'{{"name": "get_weather", "parameters": {arguments}}}' for arguments in (PARIS, ROME)]
    assert shown == [calls[0], '"sunny"', calls[1], '"rain"']


def test_llama_messages_keep_results_without_a_call_and_single_calls(template):
    single = copy.deepcopy(CONVERSATION)
    single[1]["tool_calls"].pop()
    llama = ToolFormat.of('ipython tools "parameters": ')
    assert llama.messages(prepare(single), []) == prepare(single)
    lost = [*CONVERSATION[:2], CONVERSATION[3], {"role": "tool", "content": "stray"}]
    roles = [(message["role"], message.get("tool_call_id")) for message in llama.messages(prepare(lost), [])]
    assistants = [("assistant", None), ("assistant", None)]
    assert roles == [("user", None), *assistants, ("tool", "call_1"), ("tool", None)]


def test_mistral_is_shown_ids_of_nine_characters(template):
    _, text = template(NEMO, CONVERSATION, [WEATHER])
    written = json.loads(re.search(r"\[TOOL_CALLS\](.*?)</s>", text)[1])
    assert [call["arguments"] for call in written] == [json.loads(PARIS), json.loads(ROME)]
    results = re.findall(r'"call_id": "(.{9})"', text)
    assert [call["id"] for call in written] == results and len(set(results)) == 2
    kept = copy.deepcopy(CONVERSATION)
    kept[1]["tool_calls"][0]["id"] = kept[2]["tool_call_id"] = "abc123XYZ"
    assert '"id": "abc123XYZ"' in template(NEMO, kept, [WEATHER])[1]


@pytest.mark.parametrize("name", [GEMMA, PHI, "chujiezheng-mistral-instruct", "chujiezheng-zephyr"])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_templates_without_tools_are_shown_them_as_text(template, name, system):
    if name == GEMMA and system:
        return  # it refuses system messages
    tool_format, text = template(name, [*system, *CONVERSATION], [WEATHER])
    description = f"<tools>\n{json.dumps(WEATHER)}\n</tools>"
    assert not tool_format.native and text.index(description) < text.index("Paris and Rome?")
    assert not system or text.index("Be brief.") < text.index(description)
    for arguments in (PARIS, ROME):
        assert f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>' in text
    assert "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>" in text


def test_without_tools_generic_messages_are_changed_only_where_tools_were_used():
    generic = ToolFormat.of("")
    plain = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    assert generic.messages(plain, []) == plain
    assert [message["role"] for message in generic.messages(prepare(CONVERSATION), [])] == ["user", "assistant", "user"]
    assert generic.messages([], [TIME])[0]["role"] == "system"
