"""Images in the terminal and through pipes: /image, --image, and every command that a message with images meets."""

from __future__ import annotations

import io
import json

import pytest

from chat import __main__ as program
from chat import store
from chat.agent import Agent
from chat.conversation.events import Notice, Reply, Settings
from chat.images import content_of, images_of, read_image, shown, text_of
from chat.models.local import LocalModel
from chat.pipe import Pipe
from chat.web.exports import markdown
from engine import LLM
from engine.decoding.params import SamplingParams
from engine.runtime.errors import BareloopError, UsageError
from tests.engine.models.vision.tiny import picture


def output(agent: Agent, line: str) -> str:
    """The output of a command."""
    return "\n".join(event.text for event in agent.handle(line) if isinstance(event, Notice))


def last_message(agent: Agent):
    return agent.session.turns[-1][0]["content"]


def names(agent: Agent) -> list[str]:
    """The names of the last message's images."""
    return [image["name"] for image in images_of(last_message(agent))]


def test_an_image_goes_with_the_next_message_alone(vision_agent, cat):
    label = output(vision_agent, f"/image {cat}")
    (tokens,) = [int(words[0]) for words in [label.split(", ")[-1].split()]]
    assert label == f"[image my cat.png, 60 x 40, {tokens} tokens]"
    session = vision_agent.session
    (reply,) = [event for event in vision_agent.handle("What is it?") if isinstance(event, Reply)]
    assert (names(vision_agent), text_of(last_message(vision_agent))) == (["my cat.png"], "What is it?")
    assert reply.prompt_tokens == tokens + session.count([{"role": "user", "content": "What is it?"}])
    list(vision_agent.handle("And now?"))
    assert last_message(vision_agent) == "And now?"


def test_the_reply_is_that_of_the_model_to_the_same_messages(vision_agent, vlm, cat):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("What is it?"))
    parts = [{"type": "image", "image": cat}, {"type": "text", "text": "What is it?"}]
    llm = LLM.load(vlm, dtype="float32")
    expected = llm.chat([{"role": "user", "content": parts}], SamplingParams(max_new_tokens=6))
    assert vision_agent.session.turns[0][1]["content"] == expected.text
    without = llm.chat([{"role": "user", "content": "What is it?"}], SamplingParams(max_new_tokens=6))
    assert without.text != expected.text


def test_several_images_are_listed_sent_in_order_and_removed(vision_agent, cat, tmp_path):
    (tmp_path / "it's.jpg").write_bytes(picture(30, 30, kind="JPEG"))
    assert output(vision_agent, "/image") == "no images for the next message"
    for name in (cat, f"'{cat}'", str(cat).replace(" ", "\\ "), tmp_path / "it's.jpg", "~/my cat.png"):
        output(vision_agent, f"/image {name}")
    listed = output(vision_agent, "/image").splitlines()
    shown_names = [line.removeprefix("[image ").split(", ")[0] for line in listed]
    assert shown_names == ["my cat.png", "my cat.png", "my cat.png", "it's.jpg", "my cat.png"]
    assert output(vision_agent, '/image ""') == "no images for the next message"
    for name in (tmp_path / "it's.jpg", cat):
        output(vision_agent, f"/image {name}")
    list(vision_agent.handle("Which is larger?"))
    assert names(vision_agent) == ["it's.jpg", "my cat.png"]


@pytest.mark.parametrize("name", ["missing.png", "", "/dev/zero", "text.png", "a\0b"])
def test_a_file_that_is_no_image_is_one_line_and_changes_nothing(vision_agent, tmp_path, name):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(BareloopError) as refused:
        output(vision_agent, f"/image {tmp_path / name}")
    assert "\n" not in str(refused.value)
    assert vision_agent.images == []


def test_a_text_model_answers_with_one_line(agent, cat):
    with pytest.raises(UsageError, match=r"^\S+ takes no images; use a vision-language model such as SmolVLM$"):
        output(agent, f"/image {cat}")
    with pytest.raises(BareloopError, match="takes no images"):
        list(agent.session.send("What is it?", [{"type": "image", "image": "data:image/png;base64,", "name": "cat"}]))
    assert agent.session.turns == []


def test_a_message_that_fails_keeps_its_images_for_the_next_one(vision_agent, cat):
    output(vision_agent, f"/image {cat}")
    vision_agent.session.configure(window=40)
    with pytest.raises(BareloopError, match=r"^the message has \d+ tokens with 1 image, .*leave out an image"):
        list(vision_agent.handle("What is it?"))
    vision_agent.session.configure(window=None)
    list(vision_agent.handle("What is it?"))
    assert names(vision_agent) == ["my cat.png"] and vision_agent.images == []


def test_another_reply_and_an_edited_message_keep_the_images(vision_agent, cat, tmp_path):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("What is it?"))
    output(vision_agent, "/retry")
    assert names(vision_agent) == ["my cat.png"]
    output(vision_agent, "/edit Where is it?")
    assert shown(last_message(vision_agent)) == "[image my cat.png]\nWhere is it?"
    (tmp_path / "dog.png").write_bytes(picture(20, 50))
    output(vision_agent, f"/image {tmp_path / 'dog.png'}")
    output(vision_agent, "/branch 1 And this?")
    assert shown(last_message(vision_agent)) == "[image dog.png]\nAnd this?" and vision_agent.images == []
    assert output(vision_agent, "/version 1").splitlines()[-1].startswith("* 4  [image dog.png] And this? |")
    assert output(vision_agent, "/undo").startswith("removed: [image dog.png]\nAnd this?")


def test_images_given_with_a_line_are_those_of_a_message(vision_agent, cat):
    output(vision_agent, f"/image {cat}")
    (image,) = vision_agent.images
    vision_agent.images = []
    list(vision_agent.handle("", [image]))
    assert (names(vision_agent), text_of(last_message(vision_agent))) == (["my cat.png"], "")
    with pytest.raises(UsageError, match="images go with a message"):
        list(vision_agent.handle("/retry", [image]))


def test_a_conversation_with_images_is_saved_and_continued_with_the_same_tokens(vision_agent, cat, tmp_path):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("What is it?"))
    output(vision_agent, f"/save {tmp_path / 'copy.json'}")
    tokens, turns = vision_agent.session.tokens(), vision_agent.session.turns
    cat.unlink()  # the conversation has the image itself
    other = Agent(vision_agent.load_model, vision_agent.name, Settings())
    text = output(other, f"/load {tmp_path / 'copy.json'}")
    assert "user: [image my cat.png]\nWhat is it?" in text and "base64" not in text
    assert (other.session.turns, other.session.tokens()) == (turns, tokens)
    assert store.listed()[0][1] == "What is it?"
    assert store.heading("", [[{"content": content_of("", images_of(turns[0][0]["content"]))}]]) == "[image my cat.png]"
    assert "[image my cat.png]\nWhat is it?" in markdown(other)
    list(other.handle("And now?"))
    assert store.load(other.path).turns[0] == turns[0]


def test_a_message_without_a_reply_is_offered_again_with_its_images(vision_agent, cat):
    output(vision_agent, f"/image {cat}")
    vision_agent.keep("What is it?", vision_agent.images)
    other = Agent(vision_agent.load_model, vision_agent.name, Settings())
    text = output(other, f"/load {vision_agent.path}")
    assert "ready to be sent again: [image my cat.png]\nWhat is it?" in text
    assert (other.draft, other.draft_images) == ("What is it?", vision_agent.images)


def test_a_message_is_in_its_file_before_its_images_are_decoded(vision_agent, cat, monkeypatch):
    saved = []
    model, encode = type(vision_agent.session.model), LocalModel._encode
    monkeypatch.setattr(
        model, "_encode", lambda self, messages: saved.append(vision_agent.path.is_file()) or encode(self, messages)
    )
    vision_agent.images.append(read_image(str(cat)))
    list(vision_agent.handle("What is it?"))
    assert saved and all(saved)


def test_a_damaged_image_of_a_file_is_named_with_the_way_out(vision_agent, cat):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("What is it?"))
    text = vision_agent.path.read_text()
    vision_agent.path.write_text(text.replace("data:image/png;base64,iVBOR", "data:image/png;base64,AAAAA"))
    list(vision_agent.load(vision_agent.path))
    message = r"^\[image my cat\.png\]: the image is not a PNG, .*; /undo removes its turn$"
    with pytest.raises(BareloopError, match=message):
        list(vision_agent.handle("And now?"))
    output(vision_agent, "/undo")
    assert any(isinstance(event, Reply) for event in vision_agent.handle("And now?"))


def test_images_that_wait_are_not_taken_to_a_text_model(vision_agent, agent, cat):
    output(vision_agent, f"/image {cat}")
    vision_agent.load_model = lambda _: agent.session.model
    with pytest.raises(UsageError, match=r'images wait for the next message, and text takes none; /image "" removes'):
        output(vision_agent, "/model text")
    output(vision_agent, '/image ""')
    assert "now text" in output(vision_agent, "/model text")


def test_a_text_model_does_not_take_over_a_conversation_with_images(vision_agent, agent, cat):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("What is it?"))
    with pytest.raises(UsageError, match=r"this conversation has images, and \S+ takes none; /clear starts a new one"):
        output(vision_agent, f"/model {agent.name}")
    assert len(vision_agent.session.turns) == 1 and vision_agent.session.model.takes_images
    assert "it has images, and" in output(agent, f"/load {vision_agent.path}")
    with pytest.raises(BareloopError, match="takes no images"):
        list(agent.handle("And now?"))
    assert len(agent.session.turns) == 1


def test_tokens_and_prompt_show_an_image_s_vectors_shortly(vision_agent, cat):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("What is it?"))
    tokens, prompt = output(vision_agent, "/tokens"), output(vision_agent, "/prompt")
    assert ":'<image>' x 4 " in tokens and "'<row_1_col_2>'" in tokens
    assert "<fake_token_around_image><global-img><image><fake_token_around_image>What is it?" in prompt
    assert max(token for token, _ in vision_agent.session.tokens()) < 1000  # ids of the vocabulary
    assert "images     1, of which in the window 1" in output(vision_agent, "/stats")


def test_an_image_that_looks_like_a_control_token_in_a_text_is_text(vision_agent, cat):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("Is <image> here?"))
    number = vision_agent.session.count([vision_agent.session.turns[0][0]])
    image = vision_agent.session.count([{"role": "user", "content": images_only(vision_agent)}])
    text = vision_agent.session.count([{"role": "user", "content": "Is <image> here?"}])
    nothing = vision_agent.session.count([{"role": "user", "content": ""}])
    assert abs(number - (image + text - nothing)) <= 2


def images_only(agent: Agent) -> list:
    return [*images_of(last_message(agent)), {"type": "text", "text": ""}]


def test_a_reply_with_an_image_is_scored_without_probabilities_of_the_image(vision_agent, cat):
    output(vision_agent, f"/image {cat}")
    list(vision_agent.handle("What is it?"))
    scored = vision_agent.session.window_tokens(scored=True)
    assert [token.id for token in scored] == [token for token, _ in vision_agent.session.tokens()]
    unknown = [token for token in scored if token.logprob is None]
    assert {token.text for token in unknown[1:]} == {"<image>"} and scored[-1].logprob is not None
    assert output(vision_agent, "/logprobs")


def test_images_through_pipes(vision_agent, cat, capsys):
    lines = f"/image {cat}\nWhat is it?\n/image missing.png\nAnd now?\n"
    assert not Pipe(vision_agent, as_json=True).talk(io.StringIO(lines))
    label, reply, error, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (label["type"], reply["type"], error["type"]) == ("info", "reply", "error")
    assert label["text"].startswith("[image my cat.png, 60 x 40, ")
    assert [shown(turn[0]["content"]) for turn in vision_agent.session.turns] == [
        "[image my cat.png]\nWhat is it?",
        "And now?",
    ]


def test_the_flag_sends_images_with_the_prompt(vlm, cat, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    flags = ["-m", str(vlm), "--image", str(cat), "-p", "What is it?", "--json", "-n", "4"]
    program.main(program.parser().parse_args(flags))
    label, reply = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert label["text"].startswith("[image my cat.png, ") and reply["usage"]["prompt_tokens"] > 50
    (saved,) = (store.load(path) for path in store.folder().glob("*.json"))
    assert shown(saved.turns[0][0]["content"]) == "[image my cat.png]\nWhat is it?"
    with pytest.raises(UsageError, match="--image is for the terminal"):
        program.main(program.parser().parse_args(["--web", "--image", str(cat)]))
    with pytest.raises(UsageError, match="takes no images"):
        program.main(program.parser().parse_args(["-m", "demo", *flags[2:]]))


def test_a_base_model_without_a_template_takes_no_images(agent, cat):
    model = LocalModel.load(agent.name)
    assert not model.takes_images
