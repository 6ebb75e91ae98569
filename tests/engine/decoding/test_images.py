"""Images in prompts: their ids, their vectors, and that a tile is computed once, when it is needed."""

from __future__ import annotations

import base64
import gc
import threading
from types import SimpleNamespace

import pytest
import torch

from engine import LLM, SamplingParams
from engine.cache.state import Step, StepImages
from engine.decoding import images
from engine.decoding.images import ImageLibrary, is_image_id
from engine.decoding.sampling import Context, adjust
from engine.decoding.sequence import prefill
from engine.decoding.speculation import PromptLookup
from engine.runtime.errors import BareloopError
from engine.runtime.pictures import read_picture
from tests.engine.models.vision.tiny import TinyVLM, picture, tiny_checkpoint

CAT, DOG = picture(90, 60, seed=1), picture(32, 32, seed=2)  # in 3 x 4 and 4 x 4 tiles, and as a whole


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyVLM:
    return tiny_checkpoint(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module")
def llm(tiny) -> LLM:
    return LLM.load(tiny.folder, device="cpu", dtype="float32")


@pytest.fixture
def library(llm) -> ImageLibrary:
    """A library of its own, without any images."""
    assert llm.folder is not None
    return ImageLibrary(llm.model, llm.folder, llm.tokenizer)


@pytest.fixture
def computed(llm, monkeypatch) -> list[int]:
    """The number of tiles of each group that is computed from now on."""
    tiles, original = [], llm.model.image_vectors

    def counting(pixels):
        tiles.append(len(pixels))
        return original(pixels)

    monkeypatch.setattr(llm.model, "image_vectors", counting)
    return tiles


def use(llm, library, monkeypatch) -> None:
    monkeypatch.setitem(vars(llm), "images", library)


def image_ids(ids) -> list[int]:
    return [token for token in ids if is_image_id(token)]


def pixels(library, *images) -> torch.Tensor:
    tiles = [tile for image in images for tile in library.processor.split(read_picture(image)).pixels]
    return torch.stack([torch.from_numpy(library.processor.normalize(tile)) for tile in tiles])


def greedy(count: int, **others) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, ignore_eos=True, **others)


def test_the_same_bytes_have_the_same_ids_and_two_images_share_none(library, tmp_path):
    (tmp_path / "cat.png").write_bytes(CAT)
    url = "data:image/png;base64," + base64.b64encode(CAT).decode()
    ids = library.encode(CAT)
    for source in (CAT, tmp_path / "cat.png", str(tmp_path / "cat.png"), url):
        assert library.encode(source) == ids
        assert library.count(source) == len(ids)
    others = [library.encode(DOG), library.encode(CAT, "key 1"), library.encode(CAT, "key 2")]
    assert not set(image_ids(ids)) & {token for other in others for token in image_ids(other)}
    assert not set(image_ids(others[1])) & set(image_ids(others[2]))
    assert len(image_ids(ids)) == len(set(image_ids(ids)))
    assert all(type(token) is int for token in ids)


def test_placeholders_are_the_prompt_of_the_reference(library, tiny):
    ids = library.placeholders([*library.encode(CAT), *library.encode(DOG)])
    images = [read_picture(CAT), read_picture(DOG)]
    assert ids == tiny.processor(text="<image><image>", images=images)["input_ids"][0]
    assert ids.count(tiny.image_token_id) == len(image_ids(library.encode(CAT) + library.encode(DOG)))


def test_logits_with_two_images_equal_those_of_the_reference_in_float64(tiny):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    llm.model.double()
    ids = [1, 40, *llm.images.encode(CAT), 50, 51, *llm.images.encode(DOG), 60]
    expected = tiny.logits(llm.images.placeholders(ids), pixels(llm.images, CAT, DOG))
    assert (llm.logits(ids) - expected).abs().max() <= 2e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_that_end_inside_an_image_give_the_same_logits(llm, library, monkeypatch, computed, chunk):
    use(llm, library, monkeypatch)
    ids = [1, 40, *library.encode(CAT), 50, 51]
    expected = llm.logits(ids)
    tiles = sum(computed)
    sequence = llm.sequence()
    _, (hidden,) = prefill([sequence], [ids], [len(ids)], chunk=chunk)
    assert (llm.model.logits(hidden) - expected).abs().max() <= 2e-5 * float(expected.abs().max())
    assert tiles == len(pixels(library, CAT)) == sum(computed)  # once in all


def test_only_the_group_of_tiles_of_a_piece_is_computed(llm, library, monkeypatch, computed):
    use(llm, library, monkeypatch)
    ids = library.encode(CAT)
    prefill([llm.sequence()], [ids[: ids.index(image_ids(ids)[0]) + 1]], [1])
    assert computed == [2]


def test_an_image_has_the_same_bits_whatever_is_computed_first(llm, library, monkeypatch):
    use(llm, library, monkeypatch)
    ids = image_ids(library.encode(CAT))
    whole = library.vectors(ids)
    other = ImageLibrary(llm.model, llm.folder, llm.tokenizer)
    other.encode(CAT)
    backwards = other.vectors(ids[::-1])
    assert torch.equal(whole, backwards.flip(0))


def test_what_follows_an_image_costs_only_the_new_tokens(llm, library, monkeypatch, computed):
    use(llm, library, monkeypatch)
    sequence = llm.sequence()
    ids = [1, 40, *library.encode(CAT), 50]
    assert sequence.feed(ids) == 0
    tiles = sum(computed)
    assert sequence.feed([*ids, 51, 52]) == len(ids)
    other = [1, 40, *library.encode(DOG), 50]
    cached = sequence.feed(other)
    assert cached == next(i for i, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1])
    assert not image_ids(other[:cached])
    assert sum(computed) == tiles + len(pixels(library, DOG))
    assert torch.equal(sequence.fork(1)[0].last_logits(), sequence.last_logits())


def test_a_fork_goes_on_inside_an_image(llm, library, monkeypatch):
    use(llm, library, monkeypatch)
    ids = [1, 40, *library.encode(CAT), 50]
    sequence = llm.sequence()
    sequence.feed(ids[:20])
    (fork,) = sequence.fork(1)
    fork.feed(ids)
    expected = llm.logits(ids)[-1]
    assert (fork.last_logits() - expected).abs().max() <= 2e-5 * float(expected.abs().max())


def test_images_beyond_the_limit_are_dropped_but_not_those_that_somebody_holds(llm):
    library = ImageLibrary(llm.model, llm.folder, llm.tokenizer, max_bytes=1)
    cat = library.encode(CAT)
    held = library.pin([1, *cat, 2])
    dog = library.encode(DOG)
    assert len(library.vectors(image_ids(cat))) == len(image_ids(cat))
    assert library.used_bytes > library.nbytes
    del held
    gc.collect()
    assert library.used_bytes == library.nbytes
    with pytest.raises(BareloopError, match=r"^an image of this prompt is no longer in memory; send it again$"):
        library.vectors(image_ids(cat))
    assert library.pin(cat) == []
    assert len(library.vectors(image_ids(dog))) == len(image_ids(dog))  # the last one stays
    assert library.encode(CAT) == cat
    assert len(library.vectors(image_ids(cat))) == len(image_ids(cat))


def test_pixels_are_freed_when_their_vectors_are_known(library):
    ids = image_ids(library.encode(CAT))
    tiles = len(pixels(library, CAT))
    assert library.nbytes == tiles * 3 * 32 * 32
    vectors = library.vectors(ids)
    assert library.nbytes == vectors.nbytes == len(ids) * vectors.shape[1] * 4


def test_a_dropped_image_that_is_cached_is_not_needed(llm, monkeypatch):
    library = ImageLibrary(llm.model, llm.folder, llm.tokenizer, max_bytes=1)
    use(llm, library, monkeypatch)
    ids = [1, 40, *library.encode(CAT), 50]
    sequence = llm.sequence()
    sequence.feed(ids)
    library.encode(DOG)
    gc.collect()
    assert sequence.feed([*ids, 51]) == len(ids)
    with pytest.raises(BareloopError, match="no longer in memory"):
        llm.sequence().feed(ids)


def test_threads_that_encode_the_same_image_share_it(llm, library):
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(library.encode(CAT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [library.encode(CAT)] * 8
    assert library.nbytes == len(pixels(library, CAT)) * 3 * 32 * 32


def test_what_is_not_an_image_is_one_line_with_its_name(library, tmp_path):
    (tmp_path / "cat.png").write_bytes(CAT[:100])
    for source in (tmp_path / "cat.png", str(tmp_path / "cat.png")):
        with pytest.raises(BareloopError, match=r"cat\.png") as caught:
            library.encode(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(BareloopError, match=r"^the image "):
        library.encode(b"GIF89a")


def test_the_images_of_one_chat_do_not_drop_one_another(llm, monkeypatch):
    library = ImageLibrary(llm.model, llm.folder, llm.tokenizer, max_bytes=1)
    use(llm, library, monkeypatch)
    parts = [{"type": "image", "image": image} for image in (CAT, DOG)]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What are they?"}]}]
    assert llm.chat(messages, SamplingParams(max_new_tokens=2)).usage.completion_tokens > 0


def test_a_damaged_image_is_decoded_once(library, monkeypatch):
    calls = []
    monkeypatch.setattr(images, "read_picture", lambda *source: calls.append(source) or read_picture(*source))
    with pytest.raises(BareloopError, match=r"^the image is damaged"):
        library.encode(CAT[:200])
    assert len(calls) == 1


def test_the_text_of_a_prompt_has_nothing_for_the_vectors_of_an_image(llm):
    before, after = llm.encode("What is"), llm.encode(" it?")
    vectors = image_ids(llm.images.encode(CAT))
    assert llm.tokenizer.decode([*before, *vectors, *after]) == "What is it?"


def test_a_checkpoint_without_an_image_processor_has_texts_and_one_line_for_an_image(tiny, tmp_path):
    for file in tiny.folder.iterdir():
        if "processor" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    llm = LLM.load(tmp_path, device="cpu", dtype="float32")
    assert len(llm.generate([[5, 6]], greedy(2))[0].token_ids) == 2
    with pytest.raises(BareloopError, match="preprocessor_config"):
        llm.images.encode(CAT)


@pytest.mark.parametrize(
    ("token", "line"),
    [
        (2**70, "token ids are 0 to"),
        (-1, "token ids are 0 to"),
        (2**160 + 5, "no longer in memory"),
        (2**161, "token ids are 0 to"),
    ],
)
def test_ids_that_are_no_tokens_and_of_no_known_image_are_one_line(llm, token, line):
    with pytest.raises(BareloopError, match=line):
        llm.generate([[1, token, 2]], greedy(1))
    with pytest.raises(BareloopError, match=line):
        llm.logits([1, token, 2])


def test_ids_of_an_image_are_refused_where_there_can_be_none(llm, tiny_llama):
    ids = llm.images.encode(CAT)
    text_model = LLM.load(tiny_llama.folder, device="cpu", dtype="float32")
    assert text_model.images is None
    for call in (
        lambda: text_model.logits(ids),
        lambda: text_model.generate([ids]),
        lambda: next(text_model.stream(ids)),
        lambda: llm.score([([1, 2], ids)]),
    ):
        with pytest.raises(BareloopError, match="have an image") as caught:
            call()
        assert len(str(caught.value)) < 120


def test_a_continuation_is_scored_after_an_image(llm):
    ids = [1, *llm.images.encode(CAT), 5, 6]
    (score,) = llm.score([(ids[:-1], ids[-1:])])
    expected = llm.logits(ids)[-2].log_softmax(-1)[6]
    assert score.loglikelihood == pytest.approx(float(expected), abs=1e-4)


def test_penalties_leave_images_out(llm):
    ids = [1, 40, *llm.images.encode(CAT), 50]
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=0.5)
    logits = torch.randn(1, llm.config.vocab_size, generator=torch.Generator().manual_seed(0))
    adjusted = [
        adjust(logits, [Context(params, text, len(text), 0)])
        for text in (ids, [token for token in ids if not is_image_id(token)])
    ]
    assert torch.equal(*adjusted)


def test_prompt_look_up_drafts_no_images(llm):
    cat = image_ids(llm.images.encode(CAT))[0]
    reply = SimpleNamespace(sequence=SimpleNamespace(ids=[4, 5, 6, 7, cat, cat + 1, 9]), start=7, token_ids=[4, 5, 6])
    hashable = type("Reply", (), vars(reply))()
    lookup = PromptLookup()
    assert lookup.kinds([hashable]) == [2]
    assert lookup.propose([hashable], [4]) == [[7]]


def test_merge_replaces_rows_and_is_differentiable():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(2, 3, dtype=torch.float32, requires_grad=True)
    merged = StepImages(torch.tensor([2, 0]), vectors).merge(x)
    assert merged.dtype == x.dtype
    assert torch.equal(merged, torch.stack([vectors[1].double(), x[1], vectors[0].double(), x[3]]))
    merged.sum().backward()
    assert torch.equal(x.grad.sum(1), torch.tensor([0.0, 3.0, 0.0, 3.0], dtype=torch.float64))
    assert torch.equal(vectors.grad, torch.ones(2, 3))


def test_a_step_without_images_is_that_of_a_text(library):
    step = library.pack([[1, 2], [3]], [0, 1], [4, 0], torch.device("cpu"))
    plain = Step.pack([[1, 2], [3]], [0, 1], [4, 0])
    assert step.images is None
    assert torch.equal(step.tokens, plain.tokens)
    assert torch.equal(step.positions, plain.positions)
