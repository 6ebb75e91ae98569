"""Conversations with a real model: recall, and 12 turns in a small window with every strategy."""

from __future__ import annotations

import pytest

from chat.context import STRATEGIES, ContextOverflowError
from chat.conversation.events import Reply, Settings
from chat.conversation.session import Session
from chat.models.local import LocalModel
from engine import LLM

WINDOW, RESERVE = 128, 32
TURNS = 12  # four fill the window
TOPICS = ("rivers", "bread", "the moon", "trains", "chess", "bees", "volcanoes", "paper")


@pytest.fixture(scope="module")
def llm(smollm2: str) -> LLM:
    return LLM.load(smollm2, "cpu")


def reply(session: Session, text: str) -> Reply:
    """The reply to a message."""
    (result,) = [event for event in session.send(text) if isinstance(event, Reply)]
    return result


def test_a_name_is_recalled_one_turn_later_only_with_history(llm):
    session = Session(LocalModel(llm), Settings(sampling={"max_new_tokens": 16, "temperature": 0.0}))
    reply(session, "My name is Ada. Please remember it.")
    assert "Ada" in reply(session, "What's my name? Answer with the name.").text
    session.configure(history=False)
    assert "Ada" not in reply(session, "What's my name? Answer with the name.").text


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_12_turns_never_exceed_the_window(llm, strategy):
    sampling = {"max_new_tokens": 4, "temperature": 0.0}
    session = Session(LocalModel(llm), Settings(window=WINDOW, reserve=RESERVE, strategy=strategy, sampling=sampling))
    for turn in range(TURNS):
        text = f"Message {turn}: what do you know about {TOPICS[turn % len(TOPICS)]}?"
        try:
            answer = reply(session, text)
        except ContextOverflowError as error:
            assert strategy == "none" and str(WINDOW) in str(error).replace(",", "")
            break
        assert answer.prompt_tokens + answer.completion_tokens <= WINDOW
        assert answer.prompt_tokens <= WINDOW - RESERVE
    else:
        assert strategy != "none" and len(session.turns) == TURNS and session.start > 0
