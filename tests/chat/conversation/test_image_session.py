"""Conversations with images: computed once, counted by the budget, dropped with their turns and announced."""

from __future__ import annotations

import random
import re

import pytest

from chat.context import STRATEGIES, ContextOverflowError, prompt_messages
from chat.conversation.events import Notice, Reply, Settings
from chat.conversation.recall import Memory
from chat.conversation.session import Session
from chat.conversation.transcript import remembered
from chat.images import ImagePart, content_of, count_images, image_part
from chat.memory.store import MemoryStore
from chat.models import local
from chat.models.local import LocalModel
from engine import LLM
from engine.runtime.errors import BareloopError
from tests.engine.models.vision.tiny import picture

GREEDY = {"max_new_tokens": 5, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def vision(vlm) -> LLM:
    return LLM.load(vlm, dtype="float32")


def image(seed: int, width: int = 60, height: int = 40) -> ImagePart:
    """An image of its own for each seed."""
    return image_part(picture(width, height, seed), f"picture-{seed}.png")


def say(session: Session, text: str, *images: ImagePart) -> tuple[list[Notice], Reply]:
    events = list(session.send(text, images))
    (reply,) = [event for event in events if isinstance(event, Reply)]
    assert reply.prompt_tokens <= session.budget.room
    return [event for event in events if isinstance(event, Notice)], reply


def test_an_image_is_computed_once_and_going_on_costs_only_the_new_tokens(vision, monkeypatch):
    tiles: list[int] = []
    compute = type(vision.model).image_vectors
    monkeypatch.setattr(
        type(vision.model), "image_vectors", lambda self, pixels: tiles.append(len(pixels)) or compute(self, pixels)
    )
    session = Session(LocalModel(vision), Settings(sampling=GREEDY))
    _, first = say(session, "What is it?", image(1), image(2))
    computed = sum(tiles)
    assert computed > 2 and first.cached_tokens == 0
    before = first
    for text in ("And now?", "Where?"):
        _, reply = say(session, text)
        assert reply.cached_tokens >= before.prompt_tokens
        before = reply
    assert sum(tiles) == computed


def test_other_pixels_under_the_same_name_share_nothing_that_is_cached(vision):
    session = Session(LocalModel(vision), Settings(sampling=GREEDY))
    _, first = say(session, "What is it?", image(3))
    other = {**image(4), "name": "picture-3.png"}
    events = list(session.edit("What is it?", images=[other]))
    (again,) = [event for event in events if isinstance(event, Reply)]
    assert again.prompt_tokens == first.prompt_tokens and again.cached_tokens < 12
    (same,) = [event for event in session.retry() if isinstance(event, Reply)]
    assert same.text == again.text and same.cached_tokens == same.prompt_tokens - 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_prompt_overflows_and_dropping_a_turn_drops_and_announces_its_images(vision, strategy):
    draws = random.Random(strategy)
    session = Session(LocalModel(vision), Settings(system="Hi.", strategy=strategy, window=420, sampling=GREEDY))
    notices: list[Notice] = []
    for number in range(14):
        images = [image(draws.randrange(5), draws.choice((20, 60)), 40) for _ in range(draws.choice((0, 0, 1, 2)))]
        try:
            told, _ = say(session, f"{number} " + "cat " * draws.randrange(12), *images)
        except ContextOverflowError as full:
            assert strategy == "none" and "start a new conversation" in str(full)
            break
        notices += told
    dropped = session.turns[: session.start]
    announced = [int(n) for notice in notices for n in re.findall(r"tokens and (\d+) image", notice.text)]
    assert (session.start == 0) == (strategy == "none")
    assert sum(announced) == sum(map(count_images, dropped)) == session.statistics.dropped_images
    assert any(announced) or strategy == "none"
    visible = session.visible_messages()
    assert count_images(visible) == sum(map(count_images, session.turns[session.start :]))


def test_a_message_whose_images_do_not_fit_is_refused_and_changes_nothing(vision):
    session = Session(LocalModel(vision), Settings(window=200, sampling=GREEDY))
    say(session, "Hi")
    with pytest.raises(ContextOverflowError, match=r"tokens with 3 images, .*leave out an image, or use"):
        list(session.send("What are they?", [image(1), image(2), image(3)]))
    assert len(session.turns) == 1


def test_text_is_put_in_front_of_the_text_of_a_message_after_its_images():
    content = content_of("What is it?", [image(1)])
    turns = [[{"role": "user", "content": content}]]
    (message,) = prompt_messages("Be kind.", turns, system_role="none", memories="# Memories")
    assert message["content"] == content_of("Be kind.\n\n# Memories\n\nWhat is it?", [image(1)])
    assert content == content_of("What is it?", [image(1)])


def test_a_memory_has_the_name_of_an_image_and_the_question_s_words_are_searched_for(vision, tmp_path):
    memory = Memory(MemoryStore.open(tmp_path / "memory.db")).bound("here")
    session = Session(LocalModel(vision), Settings(window=900, sampling=GREEDY), memory=memory)
    say(session, "Is Zorvan in it?", image(1))
    (piece,) = memory.store.pieces()
    assert piece.text.startswith("[image picture-1.png]\nIs Zorvan in it?")
    assert piece.text.strip() == remembered(session.turns[0]).strip() and "base64" not in piece.text
    say(session, "", image(2))  # without words
    session.start = 2
    memory.note("Zorvan has a red hat.")
    _, reply = say(session, "Is it Zorvan?", image(3))
    assert reply.memories and "[image picture-1.png]" in memory.recalled.block
    assert session.prompt_text().count("<global-img>") == 1


def test_an_image_of_a_prompt_stays_in_memory_until_it_is_computed(vlm):
    """Other conversations' images must not push it out between counting and computing."""
    llm = LLM.load(vlm, dtype="float32")
    assert llm.images is not None
    llm.images.max_bytes = 1
    model, messages = LocalModel(llm), [{"role": "user", "content": content_of("What?", [image(1), image(2)])}]
    count = model.count(messages)
    for seed in range(3, 9):
        llm.images.encode(picture(60, 40, seed))
    generation = model.generate(messages, GREEDY, False)
    assert generation.prompt_tokens == count and len(list(generation)) == 5


def test_an_image_is_encoded_once_however_often_a_prompt_is_counted(vlm, monkeypatch):
    llm, decoded = LLM.load(vlm, dtype="float32"), []
    parse = local.parse_data_url
    monkeypatch.setattr(local, "parse_data_url", lambda text: decoded.append(text) or parse(text))
    session = Session(LocalModel(llm), Settings(window=420, sampling=GREEDY))
    picture_1 = image(1)
    for number in range(12):
        say(session, f"{number}", *([picture_1] if number == 0 else ()))
    assert len(decoded) == 1


def test_no_text_of_a_conversation_names_a_file_that_is_read(vision, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(picture(60, 40))
    part = {"type": "image", "image": str(path), "name": "cat.png"}
    with pytest.raises(BareloopError, match="no other is fetched"):
        list(Session(LocalModel(vision)).send("What is it?", [part]))


def test_the_reply_can_be_stopped_continued_and_forked(vision):
    session = Session(LocalModel(vision), Settings(sampling={**GREEDY, "logprobs": 2}))
    say(session, "What is it?", image(1))
    whole = session.turns[0][1]["content"]
    events = session.send("More", [image(2)])
    next(event for event in events if not isinstance(event, Notice | Reply))
    events.close()
    assert session.turns[1][1]["finish_reason"] == "cancelled"
    list(session.proceed())
    list(session.fork(0, 0, 1))
    assert count_images(session.turns[0]) == 1 and session.turns[0][1]["content"] != whole
