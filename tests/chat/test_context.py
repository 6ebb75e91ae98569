"""The context: never over budget, alternating roles, always the newest message, every dropped turn counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat.context import (
    Budget,
    ContextOverflowError,
    FittedPrompt,
    fit,
    prompt_messages,
    rejects_system_role,
    summary_limit,
    wants_summary,
)
from engine.runtime.errors import BareloopError, TemplateError
from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import Tokenizer

SHARED = Path(__file__).parents[3] / "shared"
TEMPLATES = sorted(path.stem for path in (SHARED / "chat_templates").glob("*.jinja"))
TOKENIZERS = {  # by a part of the template's name; other templates use Qwen's
    "llama-2": "llama-2",
    "llama-3": "llama-3.2",
    "Llama-3": "llama-3.2",
    "istral": "mistral-7b-instruct-v0.2",
    "olmo": "olmo-2",
}
DEFAULT_TOKENIZER = "qwen2.5-0.5b-instruct"


def words(messages: list) -> int:
    """A template in which a token is a word, plus two tokens per message."""
    return sum(len(message["content"].split()) + 2 for message in messages)


def turn(number: int, user: int, reply: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"u{number} " + "x " * user},
        {"role": "assistant", "content": f"a{number} " + "y " * reply},
    ]


def test_the_default_reserve_is_the_reply_length_and_at_most_a_quarter_of_the_window():
    assert Budget.of(4096, 256) == Budget(4096, 256)
    assert Budget.of(512, 256) == Budget(512, 128)
    assert Budget.of(512, 256, reserve=400).room == 112
    with pytest.raises(ContextOverflowError, match="a reserve of 600 tokens leaves no room in a window of 512"):
        Budget.of(512, 256, reserve=600)


def test_truncate_drops_the_minimum_and_sliding_drops_to_the_low_water_mark():
    turns = [*(turn(number, 4, 4) for number in range(9)), [{"role": "user", "content": "new"}]]
    budget = Budget(120, 20)
    truncated, slid = (fit("be kind", turns, budget, strategy, words) for strategy in ("truncate", "sliding"))
    assert (truncated.tokens, truncated.start, truncated.dropped) == (91, 3, 3)
    assert (slid.tokens, slid.start) == (49, 6)
    assert slid.dropped_tokens == words(prompt_messages("be kind", turns)) - 49
    again = fit("be kind", turns, budget, "sliding", words, start=slid.start)
    assert (again.start, again.dropped) == (slid.start, 0)


def test_strategy_none_refuses_with_numbers_and_a_way_out():
    turns = [turn(0, 40, 40), [{"role": "user", "content": "new"}]]
    with pytest.raises(
        ContextOverflowError, match=r"has 89 tokens, and there is room for 80 \(100 minus 20 .*start a new conversation"
    ):
        fit("", turns, Budget(100, 20), "none", words)


@pytest.mark.parametrize("strategy", ["none", "truncate", "sliding", "summarise"])
def test_a_message_or_system_prompt_that_cannot_fit_is_refused_with_numbers(strategy):
    turns = [turn(0, 4, 4), [{"role": "user", "content": "w " * 90}]]
    with pytest.raises(
        ContextOverflowError,
        match=r"the message has 90 tokens, the system prompt and the template add 6, .* room for 80",
    ):
        fit("be kind", turns, Budget(100, 20), strategy, words)
    with pytest.raises(ContextOverflowError, match=r"the system prompt has 105 tokens, .*shorten it with /system"):
        fit("s " * 101, turns, Budget(100, 20), strategy, words)


def test_a_summary_is_requested_at_the_high_water_mark_and_pinned_to_the_system_prompt():
    budget = Budget(125, 25)
    assert summary_limit(budget) == 10
    assert not wants_summary(80, 3, budget, "summarise")
    assert wants_summary(81, 3, budget, "summarise")
    assert not wants_summary(81, 1, budget, "summarise")
    assert not wants_summary(81, 3, budget, "sliding")
    first = prompt_messages("be kind", [turn(0, 1, 1)], "the user is Bo")[0]
    assert first == {"role": "system", "content": "be kind\n\nSummary of the conversation so far: the user is Bo"}


def test_a_template_without_a_system_role_gets_the_system_prompt_in_the_first_message():
    def strict(messages: list) -> int:
        if messages[0]["role"] == "system":
            raise TemplateError("no system role")
        return words(messages)

    assert rejects_system_role(strict)
    assert not rejects_system_role(words)
    assert prompt_messages("be kind", [turn(0, 0, 0)], fold_system=True)[0]["content"] == "be kind\n\nu0 "


@pytest.fixture(scope="module")
def templates(shared) -> dict[str, ChatTemplate]:
    loaded = {name: Tokenizer.load(shared / "tokenizers" / name) for name in {*TOKENIZERS.values(), DEFAULT_TOKENIZER}}
    templates = {}
    for name in TEMPLATES:
        tokenizer = loaded[
            next((tokenizer for part, tokenizer in TOKENIZERS.items() if part in name), DEFAULT_TOKENIZER)
        ]
        source = (shared / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
        templates[name] = ChatTemplate(source, tokenizer)
    return templates


lengths = st.integers(0, 60)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_conversation_overflows_any_template(templates, name, data):
    """A conversation grows turn by turn, whatever the lengths, the window and the strategy."""
    template = templates[name]
    strategy = data.draw(st.sampled_from(["none", "truncate", "sliding", "summarise"]))
    window = data.draw(st.integers(60, 400))
    budget = Budget.of(window, data.draw(st.integers(1, 200)))
    system = "word " * data.draw(st.sampled_from([0, 0, 5, 30]))
    summary = data.draw(st.sampled_from(["", "The user is called Bo."]))

    def count(messages: list) -> int:
        return len(template.encode(messages))

    fold_system = rejects_system_role(count)
    turns: list = []
    start = 0
    for number in range(data.draw(st.integers(1, 5))):
        turns.append([{"role": "user", "content": f"q{number} " + "word " * data.draw(lengths)}])
        try:
            fitted = fit(system, turns, budget, strategy, count, start, summary, fold_system)
        except ContextOverflowError as refused:
            assert any(character.isdigit() for character in str(refused))
            turns.pop()
            continue
        check(fitted, turns, start, budget, count, strategy)
        start = fitted.start
        turns[-1].append({"role": "assistant", "content": "word " * data.draw(lengths)})


def check(fitted: FittedPrompt, turns: list, start: int, budget: Budget, count: object, strategy: str) -> None:
    assert fitted.tokens == count(fitted.messages) <= budget.window - budget.reserve  # type: ignore[operator]
    assert fitted.messages[-1]["content"].endswith(turns[-1][0]["content"])
    roles = [message["role"] for message in fitted.messages]
    without_system = roles[1:] if roles[0] == "system" else roles
    assert without_system == ["user", "assistant"] * (len(without_system) // 2) + ["user"]
    assert fitted.dropped == fitted.start - start
    assert (fitted.dropped_tokens > 0) == (fitted.dropped > 0)
    assert len(without_system) == 2 * (len(turns) - fitted.start) - 1
    assert strategy != "none" or not fitted.dropped


def test_only_template_errors_count_as_a_rejected_system_role():
    def broken(messages: list) -> int:
        raise BareloopError("out of memory")

    with pytest.raises(BareloopError, match="out of memory"):
        rejects_system_role(broken)
