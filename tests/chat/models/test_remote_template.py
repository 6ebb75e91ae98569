"""A server's chat template decides where system messages stand."""

from __future__ import annotations

import pytest

from chat.conversation.events import Settings
from tests.chat.models.chat_server import ChatServer
from tests.chat.models.test_remote import chatting, collect


def test_a_system_prompt_is_folded_into_the_first_message_if_the_template_rejects_it():
    chat = ChatServer(rejects_system=True)
    with chatting(chat, Settings(system="Be kind.")) as (session, _):
        collect(session.send("Hi!"))
    assert chat.bodies[-1]["messages"] == [{"role": "user", "content": "Be kind.\n\nHi!"}]


@pytest.mark.parametrize("status", [400, 500])
def test_a_template_that_rejects_a_later_system_message_gets_none(status):
    chat = ChatServer(rejects_later_system=status)
    with chatting(chat, Settings(system="Be kind.")) as (session, _):
        collect(session.send("Hi!"))
        assert session.model.system_role == "first"
    assert [message["role"] for message in chat.bodies[-1]["messages"]] == ["system", "user"]
