"""Image parts of messages: what templates are given, what is refused, and how images of a request are encoded."""

from __future__ import annotations

import base64

import pytest

from engine.decoding.images import PromptImages
from engine.runtime.errors import BareloopError
from engine.runtime.pictures import data_url
from engine.serve.conversation.images import MAX_USED, RequestImages, find_images
from engine.serve.conversation.messages import prepare
from engine.serve.conversation.tools import ToolFormat
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.protocol.errors import ApiError
from tests.engine.models.vision.tiny import picture

PICTURE = picture(5, 4)


def image(url, **details):
    return {"type": "image_url", "image_url": {"url": url} | details}


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": [*parts]}


def refusal(*messages) -> ApiError:
    with pytest.raises(ApiError) as caught:
        prepare([*messages])
    assert caught.value.status == 400 and len(caught.value.message) < 500
    assert "\n" not in caught.value.message
    return caught.value


def test_a_message_with_images_stays_a_list_of_parts():
    url = data_url(PICTURE)
    messages = [{"role": "system", "content": [text("Be"), text("brief.")]}, user(text("a"), image(url), text("b"))]
    assert prepare([*messages, user(image(url, detail="auto"))]) == [
        {"role": "system", "content": "Be\nbrief."},
        user(text("a"), {"type": "image", "image": PICTURE}, text("b")),
        user({"type": "image", "image": PICTURE}),
    ]


def test_images_are_found_in_the_order_of_the_messages():
    messages = [user(text("a"), image("x")), {"role": "user", "content": "b"}, user(image("y"), image("z"))]
    places = [f"messages[{place}.image_url.url" for place in ("0].content[1]", "2].content[0]", "2].content[1]")]
    assert [*find_images(messages)] == [*zip(places, "xyz", strict=True)]
    assert not [*find_images([{"content": [5, {"type": "image_url"}, {"type": "image_url", "image_url": "x"}]}, 7])]


AT = "messages[0].content[0].image_url"


@pytest.mark.parametrize(
    ("part", "param", "message"),
    [
        ({"type": "image_url"}, AT, 'must be an object, as in {"type": "image_url"'),
        ({"type": "image_url", "image_url": data_url(PICTURE)}, AT, "must be an object"),
        ({"type": "image_url", "image_url": {}}, f"{AT}.url", "must be text"),
        (image(5), f"{AT}.url", "must be text"),
        (image("https://example.org/cat.png"), f"{AT}.url", "the server fetches nothing, as it may reach"),
        (image("HTTP://10.0.0.1/secret"), f"{AT}.url", "the server fetches nothing"),
        (image("file:///etc/passwd"), f"{AT}.url", "the server fetches nothing"),
        (image("/etc/passwd"), f"{AT}.url", "no other is fetched, not '/etc/passwd'"),
        (image("ftp://example.org/cat.png"), f"{AT}.url", "no other is fetched"),
        (image("data:text/plain;base64,SGk="), f"{AT}.url", "no other is fetched"),
        (image("data:image/png,abc"), f"{AT}.url", "no other is fetched"),
        (image("data:image/png;base64,§§"), f"{AT}.url", "not base64"),
        (image(data_url(PICTURE), detail="low"), f"{AT}.detail", "= 'low' is not supported: leave it out"),
        (image(data_url(PICTURE), detail=["auto"]), f"{AT}.detail", "is not supported"),
        (image(data_url(PICTURE) + "\ud83d"), f"{AT}.url", "not valid Unicode"),
    ],
)
def test_what_is_wrong_with_an_image_is_refused_with_its_place(part, param, message):
    error = refusal(user(part))
    assert error.param == param and error.message.startswith(param)
    assert message in error.message


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
def test_only_the_user_sends_images(role):
    error = refusal({"role": role, "content": [image(data_url(PICTURE))]})
    assert error.param == "messages[0].content[0].type" and "only messages of the user have images" in error.message


def test_an_image_may_be_larger_than_all_text():
    content = PICTURE + bytes(MAX_TEXT)
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    assert prepare([user(image(url))]) == [user({"type": "image", "image": content})]
    assert refusal(user(image(url), text("x" * (MAX_TEXT + 1)))).param == "messages"


@pytest.mark.parametrize("has_system_role", [True, False])
def test_tools_are_described_beside_an_image(has_system_role):
    source = "{{ messages }}" if has_system_role else "system role not supported"
    call_format = ToolFormat.of(source)
    message = user({"type": "image", "image": PICTURE}, text("What is it?"))
    first, *others = call_format.messages([message], [{"type": "function", "function": {"name": "f"}}])
    if has_system_role:
        assert first["role"] == "system" and '"name": "f"' in first["content"] and others == [message]
    else:
        described, *parts = first["content"]
        assert described["text"].startswith("# Tools") and described["text"].endswith("\n\n")
        assert parts == message["content"] and not others


class Library:
    """Three ids for each image."""

    used_bytes = 0

    def encode(self, source, scope):
        if source == b"broken":
            raise BareloopError("the image is damaged")
        return [1000, scope, len(source)]

    def pin(self, ids):
        return [ids]


def test_images_are_encoded_in_the_scope_of_the_request_and_pinned():
    images = RequestImages(PromptImages(Library(), 7), ["first", "second"], 6)
    assert [images.encode(b"ab"), images.encode(b"abc")] == [[1000, 7, 2], [1000, 7, 3]]
    assert images.pinned == [[1000, 7, 2], [1000, 7, 3]]


def test_what_cannot_be_encoded_is_refused_with_its_place():
    images = RequestImages(PromptImages(Library()), ["first", "second", "third"], 100)
    images.encode(b"ab")
    with pytest.raises(ApiError, match=r"^second: the image is damaged$") as caught:
        images.encode(b"broken")
    assert (caught.value.status, caught.value.param) == (400, "second")
    with pytest.raises(ApiError, match=r"^third is not the bytes of an image$"):
        images.encode("/etc/passwd")


def test_more_images_than_the_window_holds_are_not_decoded():
    images = RequestImages(PromptImages(Library()), ["first", "second", "third"], 5)
    images.encode(b"ab")
    message = "second: the images up to this one have 6 tokens, and the window is 5"
    with pytest.raises(ApiError, match=message) as caught:
        images.encode(b"ab")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "second")
    assert caught.value.extra == {"n_prompt_tokens": 6, "n_ctx": 5}


def test_no_more_images_are_decoded_while_those_of_other_requests_fill_the_memory():
    library = Library()
    images = RequestImages(PromptImages(library), ["first", "second", "third"], 100)
    images.encode(b"ab")
    library.used_bytes = MAX_USED + 1
    message = "^the images of the requests that are running take 768 MB: try again later$"
    with pytest.raises(ApiError, match=message) as caught:
        images.encode(b"abc")
    assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "1"})
    library.used_bytes = 0
    assert images.encode(b"abc")
