"""The context: never over budget, alternating roles, always the newest message, every dropped turn counted."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat.context import (
    Budget,
    ContextOverflowError,
    FittedPrompt,
    fit,
    place_memories,
    prompt_messages,
    summary_limit,
    system_role,
    wants_summary,
)
from chat.conversation.events import Settings
from chat.conversation.recall import Memory
from chat.conversation.session import Session
from chat.memory.store import MemoryStore
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


def test_memories_have_an_eighth_of_the_room_and_in_a_small_window_enough_for_two_turns():
    assert Budget.of(4096, 256, memory_share=1 / 8).memories == 480
    assert Budget.of(1024, 256, memory_share=1 / 8).memories == 128
    assert Budget.of(160, 40, memory_share=1 / 8).memories == 40
    assert Budget.of(4096, 256).memories == 0


def test_memories_stand_before_the_newest_message_and_never_drop_a_turn():
    turns = [*(turn(number, 4, 4) for number in range(9)), [{"role": "user", "content": "new"}]]
    budget = Budget(120, 20, memories=30)
    fitted = fit("be kind", turns, budget, "truncate", words, memories="some memories")
    assert [message["role"] for message in fitted.messages][-2:] == ["assistant", "user"]
    assert fitted.messages[-1]["content"] == "some memories\n\nnew"
    assert fitted.start == fit("be kind", turns, Budget(120, 50), "truncate", words).start
    assert fitted.tokens == words(fitted.messages) <= 100
    assert fit("be kind", turns, budget, "truncate", words).start == fitted.start
    assert fit("be kind", turns, budget, "truncate", words, memories="m " * 99).memories == ""


def test_what_must_be_in_the_prompt_may_use_the_room_of_the_memories():
    budget = Budget(120, 20, memories=30)
    long = [[{"role": "user", "content": "x " * 80}]]
    assert fit("be kind", long, budget, "sliding", words, memories="m " * 20).memories == ""
    fitted = fit("be kind", long, budget, "sliding", words, memories="m " * 3)
    assert (fitted.memories, fitted.tokens) == ("m " * 3, 89)
    none = fit("", [turn(0, 30, 40), [{"role": "user", "content": "new"}]], budget, "none", words, memories="m " * 99)
    assert (none.start, none.memories) == (0, "")


def test_a_template_without_a_system_role_gets_the_system_prompt_in_the_first_message():
    def strict(messages: list) -> int:
        if messages[0]["role"] == "system":
            raise TemplateError("no system role")
        return words(messages)

    assert system_role(strict, rendered) == "none"
    assert prompt_messages("be kind", [turn(0, 0, 0)], system_role="none")[0]["content"] == "be kind\n\nu0 "


def rendered(messages: list) -> str:
    return "".join(f"<{message['role']}>{message['content']}</>" for message in messages) + "<assistant>"


def hoisting(messages: list) -> str:
    return rendered(sorted(messages, key=lambda message: message["role"] != "system"))


def dropping(messages: list) -> str:
    return rendered([message for message in messages if message is messages[0] or message["role"] != "system"])


def repeating(messages: list) -> str:
    return rendered([copy for message in messages for copy in [message] * (1 + (message["role"] == "system"))])


def raising(messages: list) -> str:
    if any(message["role"] == "system" for message in messages[1:]):
        raise TemplateError("roles must alternate")
    return rendered(messages)


def changing(messages: list) -> str:
    """What stands before a later system message is written in another way."""
    text = rendered(messages)
    return text.replace("bravo", "Bravo") if "<system>delta" in text else text


def shortening(messages: list) -> str:
    """A later system message ends what is shown of the turns before it."""
    roles = [message["role"] for message in messages]
    return rendered(messages[2 * ("assistant" in roles and "system" in roles[1:]) :])


@pytest.mark.parametrize("template", [hoisting, dropping, repeating, raising, changing, shortening])
def test_a_system_message_that_is_not_simply_inserted_may_only_be_the_first(template):
    assert system_role(words, rendered) == "anywhere"
    assert system_role(words, template) == "first"


def test_memories_get_a_message_of_their_own_where_the_template_takes_it_unless_it_would_be_the_first():
    turns = [turn(0, 0, 0), [{"role": "user", "content": "new"}]]
    block, new = {"role": "system", "content": "memories"}, {"role": "user", "content": "new"}
    in_front = {"role": "user", "content": "memories\n\nnew"}
    system = {"role": "system", "content": "be kind"}
    for text, first in (("", []), ("be kind", [system])):
        for shown in (turns, turns[1:]):
            before = [*first, *(message for each in shown[:-1] for message in each)]
            own = prompt_messages(text, shown, system_role="anywhere", memories="memories")
            assert own == ([*before, block, new] if before else [in_front])
            assert prompt_messages(text, shown, memories="memories") == [*before, in_front]
    answered = [*turns[:1], [new, {"role": "assistant", "content": "reply"}]]
    assert prompt_messages("", answered, system_role="anywhere", memories="m")[2:3] == [block | {"content": "m"}]


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


ANYWHERE = ("Qwen-", "chujiezheng-qwen", "meta-llama", "microsoft-Phi", "olmo-2")  # how the names begin


@pytest.mark.parametrize("name", TEMPLATES)
def test_memories_replace_nothing_that_any_template_writes_without_them(templates, name):
    """Many write a system prompt of their own where no message before has one."""
    template, question = templates[name], [{"role": "user", "content": "alpha"}]
    role = system_role(lambda messages: len(template.encode(messages)), template.render)
    assert (role == "anywhere") == name.startswith(ANYWHERE)
    assert (role == "none") == name.startswith("google-gemma")
    for turns in ([question], [turn(0, 1, 1), question]):
        for system in ("", "Be kind."):
            bare, whole = (
                template.render(prompt_messages(system, turns, system_role=role, memories=memories))
                for memories in ("", "> bravo")
            )
            inserted = range(len(whole) - len(bare), len(whole) + 1)
            assert any(whole[: end - len(whole) + len(bare)] + whole[end:] == bare for end in inserted)
            assert whole.count("> bravo") == 1 and whole.index("> bravo") < whole.index("alpha")


lengths = st.integers(0, 60)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_conversation_overflows_any_template(templates, name, data):
    """A conversation grows turn by turn, whatever the lengths, the window and the strategy."""
    template = templates[name]
    strategy = data.draw(st.sampled_from(["none", "truncate", "sliding", "summarise"]))
    window = data.draw(st.integers(60, 400))
    budget = Budget.of(window, data.draw(st.integers(1, 200)), memory_share=data.draw(st.sampled_from([0, 1 / 8, 0.6])))
    system = "word " * data.draw(st.sampled_from([0, 0, 5, 30]))
    summary = data.draw(st.sampled_from(["", "The user is called Bo."]))

    def count(messages: list) -> int:
        return len(template.encode(messages))

    role = system_role(count, template.render)
    turns: list = []
    start = 0
    for number in range(data.draw(st.integers(1, 5))):
        turns.append([{"role": "user", "content": f"q{number} " + "word " * data.draw(lengths)}])
        memories = "# Memories\n" + "> word\n" * data.draw(lengths) if budget.memories else ""
        try:
            fitted = fit(system, turns, budget, strategy, count, start, summary, role, memories=memories)
        except ContextOverflowError as refused:
            assert any(character.isdigit() for character in str(refused))
            turns.pop()
            continue
        check(fitted, turns, start, budget, count, strategy)
        assert fitted.memories in ("", memories)
        last = [message["content"] for message in fitted.messages[-2:]]
        assert not fitted.memories or memories in last or memories in last[-1]
        other = "# Memories\n" + "> other\n" * data.draw(lengths)
        placed = place_memories(fitted, other, system, turns, budget, count, summary, role)
        assert placed.tokens == count(placed.messages) <= budget.room and placed.start == fitted.start
        start = fitted.start
        turns[-1].append({"role": "assistant", "content": "word " * data.draw(lengths)})


def check(fitted: FittedPrompt, turns: list, start: int, budget: Budget, count: object, strategy: str) -> None:
    assert fitted.tokens == count(fitted.messages) <= budget.window - budget.reserve  # type: ignore[operator]
    assert fitted.messages[-1]["content"].endswith(turns[-1][0]["content"])
    roles = [message["role"] for message in fitted.messages]
    without_system = [role for role in roles if role != "system"]
    assert without_system == ["user", "assistant"] * (len(without_system) // 2) + ["user"]
    assert fitted.dropped == fitted.start - start
    assert (fitted.dropped_tokens > 0) == (fitted.dropped > 0)
    assert len(without_system) == 2 * (len(turns) - fitted.start) - 1
    assert strategy != "none" or not fitted.dropped


class WordModel:
    """A model of a template whose replies are words."""

    limit = max_length = 400
    defaults, drafts, peak_memory, can_score, counts_exactly = {}, None, 0, False, True

    def __init__(self, template: ChatTemplate, words: int) -> None:
        self.template, self.words = template, words
        self.prompts: list[int] = []
        self.system_role = system_role(self.count, template.render)

    def at(self, now: object) -> WordModel:
        return self

    def count(self, messages: list) -> int:
        return len(self.template.encode(messages))

    def probabilities(self, events: object) -> list:
        return []

    def generate(self, messages: list, sampling: dict, continues: bool) -> Mock:
        self.prompts.append(self.count(messages))
        limit = sampling["max_new_tokens"]
        event = SimpleNamespace(text="word " * min(self.words, limit), token_id=None, finish_reason="stop")
        reply = MagicMock(in_reasoning=False, prompt_tokens=self.prompts[-1], completion_tokens=1, cached_tokens=0)
        reply.__iter__.return_value = iter([event])
        return reply


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_session_with_a_memory_overflows_any_template(templates, tmp_path_factory, name, data):
    """A session grows turn by turn, and recalls turns that have left the window, notes, and what looks like control."""
    with MemoryStore.open(tmp_path_factory.mktemp("memory") / "memory.db") as store:
        memory = Memory(store, data.draw(st.sampled_from([1 / 8, 0.6]))).bound("here")
        memory.note("the word is <|im_end|> </s> [/INST] " * data.draw(st.integers(1, 30)))
        model = WordModel(templates[name], data.draw(st.integers(1, 60)))
        strategy = data.draw(st.sampled_from(["none", "truncate", "sliding", "summarise"]))
        chosen = Settings(strategy=strategy, window=data.draw(st.integers(120, 400)), sampling={"max_new_tokens": 60})
        session = Session(model, chosen, memory=memory)
        for number in range(4):
            text = f"which word {number} " + "word " * data.draw(lengths)
            with contextlib.suppress(ContextOverflowError):
                list(session.send(text))
                assert model.prompts[-1] <= session.budget.room
                assert session.count(session.visible_messages()[:-1]) == model.prompts[-1]
                assert memory.recalled.tokens <= session.budget.room
        assert store.count() == len(session.turns) + 1


def test_only_template_errors_count_as_a_rejected_system_role():
    def broken(messages: list) -> int:
        raise BareloopError("out of memory")

    with pytest.raises(BareloopError, match="out of memory"):
        system_role(broken, rendered)
