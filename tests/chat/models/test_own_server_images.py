"""Images in a chat with a model of our own server: the same replies and counts as with the model in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chat.conversation.events import Reply, Settings
from chat.conversation.session import Session
from chat.images import content_of, image_part
from chat.models.counting import IMAGE_MARGIN
from chat.models.local import LocalModel
from chat.models.remote import Server
from engine import LLM
from engine.runtime.errors import BareloopError
from engine.serve.state import Limits
from tests.engine.models.vision.tiny import picture
from tests.engine.serve.conftest import RunningServer

GREEDY = {"max_new_tokens": 6, "temperature": 0.0}


@pytest.fixture(scope="module")
def url(vlm) -> Iterator[str]:
    server = RunningServer({"tiny": str(vlm), "demo": "demo"}, Limits(default_new_tokens=64), load={"dtype": "float32"})
    yield f"{server.url}/v1"
    server.close()


def test_a_session_says_the_same_with_a_model_here_and_on_a_server(url, vlm):
    image = image_part(picture(60, 40), "cat.png")
    local = Session(LocalModel(LLM.load(vlm, dtype="float32")), Settings(sampling=GREEDY))
    remote = Session(Server(url).load("tiny"), Settings(sampling=GREEDY))
    for text, images in (("What is it?", [image]), ("And now?", []), ("", [image])):
        replies = [event for session in (local, remote) for event in session.send(text, images)]
        here, there = (event for event in replies if isinstance(event, Reply))
        assert (here.text, here.prompt_tokens) == (there.text, there.prompt_tokens)
        assert there.cached_tokens >= here.cached_tokens > 0 or images
    messages = [{"role": "user", "content": content_of("What is it?", [image])}]
    assert 0 <= remote.count(messages) - local.count(messages) <= 2 * IMAGE_MARGIN
    assert remote.prompt_text().count("<image>") >= 2


def test_its_text_model_says_in_one_line_that_it_takes_no_images(url):
    session = Session(Server(url).load("demo"), Settings(window=4000, sampling=GREEDY))
    with pytest.raises(BareloopError) as refused:
        list(session.send("What is it?", [image_part(picture(60, 40), "cat.png")]))
    assert "image" in str(refused.value) and "\n" not in str(refused.value)
    assert session.turns == []
