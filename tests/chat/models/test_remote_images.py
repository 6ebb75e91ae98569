"""Images in chats with the models of servers: how they are sent, and counted as exactly as the server allows."""

from __future__ import annotations

import pytest

from chat.conversation.events import Notice, Reply, Settings
from chat.images import content_of, count_images, image_part
from chat.models.counting import ESTIMATED_IMAGE, IMAGE_MARGIN
from engine.runtime.errors import BareloopError
from tests.chat.models.chat_server import GENERATION_PROMPT, PER_MESSAGE, ChatServer, words
from tests.chat.models.test_remote import chatting, collect
from tests.engine.models.vision.tiny import picture
from tests.engine.remote.fake_server import error

IMAGE = image_part(picture(30, 20), "cat.png")
SENT = {"type": "image_url", "image_url": {"url": IMAGE["image"]}}
PLACEHOLDER = 1  # tokens that servers count which do not expand images in /tokenize


class VisionServer(ChatServer):
    """The same server with a vision-language model. Its /tokenize may not count images, or reject them."""

    image_tokens = 300
    told = 300  # by /tokenize, for an image; None: it rejects them
    asked_with_images = 0

    def tokens(self, body) -> int:
        return self._tokens(body, self.image_tokens)

    def _tokens(self, body, each: int) -> int:
        parts = [part for message in body["messages"] for part in _parts(message["content"])]
        texts = sum(len(part["text"].split()) for part in parts if part["type"] == "text")
        images = sum(part["type"] == "image_url" for part in parts)
        generation = GENERATION_PROMPT * (not body.get("continue_final_message"))
        return texts + each * images + PER_MESSAGE * len(body["messages"]) + generation

    def _tokenize(self, body):
        has_images = any(not isinstance(message["content"], str) for message in body.get("messages", ()))
        self.asked_with_images += has_images
        if has_images and self.told is None:
            return error("only text is supported", 400)
        answer = super()._tokenize(body)
        if "messages" in body and self.tokenizes == "messages":
            answer.content["count"] = self._tokens(body, self.told or 0)
        return answer


def _parts(content):
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def vision_server(**settings) -> VisionServer:
    return VisionServer(reply=lambda _: words("A ", "cat."), **settings)


def test_images_are_sent_as_data_urls_before_the_text():
    server = vision_server()
    with chatting(server) as (session, _):
        list(session.send("What is it?", [IMAGE]))
        list(session.send("And now?"))
        list(session.send("", [IMAGE]))
    first, _, second, _, third = server.bodies[-1]["messages"]
    assert first == {"role": "user", "content": [SENT, {"type": "text", "text": "What is it?"}]}
    assert second == {"role": "user", "content": "And now?"}
    assert third == {"role": "user", "content": [SENT]}  # no empty text


def test_a_server_that_counts_images_is_asked_once_for_each():
    server = vision_server()
    messages = [{"role": "user", "content": content_of("What is it?", [IMAGE])}]
    with chatting(server) as (session, _):
        exact = server.tokens({"messages": [{"content": [SENT, {"type": "text", "text": "What is it?"}]}]})
        assert session.count(messages) == exact + IMAGE_MARGIN
        for number in range(5):
            list(session.send(f"{number}", [IMAGE]))
        assert server.asked_with_images == 1 and session.model.counts_exactly


@pytest.mark.parametrize("tokenizes", ["messages", "text", "nothing"])
@pytest.mark.parametrize("told", [PLACEHOLDER, None])
def test_an_estimate_is_corrected_by_the_first_reply(tokenizes, told):
    server = vision_server(window=8000, tokenizes=tokenizes)
    server.told, server.image_tokens = told, 2500
    messages = [{"role": "user", "content": content_of("What is it?", [IMAGE])}]
    with chatting(server) as (session, _):
        text = session.count([{"role": "user", "content": "What is it?"}])
        assert session.count(messages) == text + ESTIMATED_IMAGE
        assert not session.model.counts_exactly
        list(session.send("What is it?", [IMAGE]))
        assert session.count(messages) == pytest.approx(text + 2500, abs=20)
        assert session.count([{"role": "user", "content": "What is it?"}]) == text  # of text it is not corrected


@pytest.mark.parametrize(("tokenizes", "told"), [("messages", 300), ("messages", PLACEHOLDER), ("nothing", None)])
@pytest.mark.parametrize("strategy", ["truncate", "sliding", "summarise"])
def test_a_long_conversation_with_images_never_exceeds_the_window(strategy, tokenizes, told):
    server = vision_server(window=2400, tokenizes=tokenizes)
    server.told = told
    with chatting(server, Settings(strategy=strategy, sampling={"max_new_tokens": 20})) as (session, _):
        dropped = 0
        for number in range(12):
            notices, _ = collect(session.send(f"{number} what is it", [IMAGE] * (number % 3)))
            dropped += sum(notice.kind == "dropped" for notice in notices)
        assert dropped and session.statistics.dropped_images == sum(map(count_images, session.turns[: session.start]))
    assert server.refused == 0


def test_a_server_that_takes_no_images_says_so_in_one_line():
    server = vision_server(window=4096)
    server.told, server.reply = None, lambda _: error("this model takes no images", 400)
    with chatting(server) as (session, _):
        with pytest.raises(BareloopError, match="this model takes no images") as refused:
            list(session.send("What is it?", [IMAGE]))
        assert "\n" not in str(refused.value) and session.turns == []
        server.reply = lambda _: words("Hello!")
        events = list(session.send("Hi!"))
        assert isinstance(events[-1], Reply) and not [event for event in events if isinstance(event, Notice)]
