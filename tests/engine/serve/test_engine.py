"""One loaded model with its scheduler's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import date

import pytest

from engine import LLM, SamplingParams
from engine.cache.paged import PagedState
from engine.decoding.scheduling.states import SchedulerStates
from engine.runtime.errors import BareloopError
from engine.serve.engine import Engine, EngineOptions
from tests.engine.models.vision.tiny import CHAT_TEMPLATE, picture, tiny_checkpoint

HELLO = [{"role": "user", "content": "Hello"}]
Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM.load("demo")


@pytest.fixture(scope="module")
def bare(demo: LLM) -> LLM:
    """A model without a tokenizer."""
    return LLM.from_config(demo.config.raw | {"num_hidden_layers": 1})


@pytest.fixture
def load(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Load an engine of the demo model, or another: load(context=…). They are closed in the end."""
    engines = []

    def create(llm: LLM = demo, observe=lambda *_: None, on_death=lambda _: None, **options: object) -> Engine:
        monkeypatch.setattr(LLM, "load", lambda source, **_: llm)
        engines.append(Engine.load("public", "source", EngineOptions(**options), observe, on_death))
        return engines[-1]

    yield create
    for engine in engines:
        engine.close()


def text_of(engine: Engine, prompt: str, tokens: int = 8) -> str:
    ids = engine.llm.encode(prompt)
    return "".join(event.text for event in engine.scheduler.submit(ids, SamplingParams(max_new_tokens=tokens)))


def test_replies_are_those_of_the_library(load, demo):
    expected = demo.generate(["Once upon a time"], SamplingParams(max_new_tokens=8))[0].text
    assert text_of(load(), "Once upon a time") == expected


def test_the_window_is_the_models_or_what_the_options_or_the_cache_allow(load, demo):
    assert load().max_length == demo.max_length
    assert load(context=100).max_length == 100
    assert load(context=10**6).max_length == demo.max_length
    row_bytes = demo.model.new_state().row_bytes
    small = load(cache_bytes=row_bytes(300))
    assert row_bytes(small.max_length) <= row_bytes(300) < row_bytes(small.max_length + 1)
    ids = [5] * (small.max_length - 4)
    assert len(list(small.scheduler.submit(ids, SamplingParams(max_new_tokens=4, ignore_eos=True)))) == 4
    with pytest.raises(BareloopError, match="less than one row takes"):
        load(cache_bytes=1)


def test_memory_is_shared_among_several_models(load):
    alone, shared = load(), load(models=4)
    assert 2 < alone.scheduler.cache_bytes / shared.scheduler.cache_bytes < 6  # other processes use memory, too


def test_the_scheduler_gets_the_options(load):
    scheduler = load(max_rows=3, max_queue=5, exact=False).scheduler
    assert (scheduler.max_rows, scheduler.max_queue, scheduler.exact) == (3, 5, False)


def test_warming_up_leaves_nothing_behind(load):
    counted = []
    engine = load(observe=lambda *step: counted.append(step))
    assert counted == []
    assert (engine.running, engine.waiting, engine.cache_usage()) == (0, 0, 0)


def test_every_step_is_observed_with_its_tokens_and_gaps(load):
    steps = []
    engine = load(observe=lambda *step: steps.append(step))
    list(engine.scheduler.submit([5] * 20, SamplingParams(max_new_tokens=4, ignore_eos=True)))
    engine.close()  # after which the last step has been observed
    assert [(name, tokens, len(gaps)) for name, tokens, gaps in steps] == [("public", 20, 0), *[("public", 1, 1)] * 3]
    assert all(0 < gap < 60 for _, _, gaps in steps for gap in gaps)


def test_the_cache_is_in_use_after_a_request(load):
    engine = load(cache_bytes=10**7)
    text_of(engine, "Once upon a time")
    assert 0 < engine.cache_usage() < 1
    assert engine.nbytes == sum(parameter.nbytes for parameter in engine.llm.model.parameters()) + 10**7
    assert 0 < engine.unallocated_bytes < 10**7


def test_memory_that_is_allocated_at_once_is_the_cache(load, demo, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(demo, "states", SchedulerStates(demo.model))
    engine = load(cache_bytes=demo.model.new_state().row_bytes(400))
    assert isinstance(engine.scheduler.state, PagedState)
    assert engine.unallocated_bytes == 0
    assert 16 <= engine.max_length <= 400
    text_of(engine, "Once upon a time")
    assert 0 < engine.cache_usage() < 1


def test_the_template_prints_the_same_date_all_day(load):
    engine = load(template="{{ strftime_now('%Y-%m-%d %H:%M') }}")
    day = date(2024, 2, 29)
    assert engine.chat_template(day) is engine.chat_template(day)
    assert engine.chat_template(day).render(HELLO) == "2024-02-29 00:00"
    assert engine.chat_template(date(2024, 3, 1)).render(HELLO) == "2024-03-01 00:00"


def test_a_given_template_takes_the_place_of_the_models(load, demo):
    assert load().template_source == demo.chat_template.source
    given = load(template="{{ messages[0].content }}!")
    assert given.template_source == "{{ messages[0].content }}!"
    assert given.chat_template(date.today()).render(HELLO) == "Hello!"


def test_a_broken_template_is_seen_when_the_model_is_loaded(load):
    with pytest.raises(BareloopError, match="chat template"):
        load(template="{{ 1 / 0 }}")
    load(template="{{ raise_exception('a system message, please') }}")  # which may be right


def test_a_model_without_tokenizer_and_template_is_served(load, bare):
    engine = load(bare)
    assert engine.template_source is None
    assert len(list(engine.scheduler.submit([5, 6], SamplingParams(max_new_tokens=3, ignore_eos=True)))) == 3


def test_the_fingerprint_tells_models_apart(load, bare):
    one, same, other = load(), load(), load(bare)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.fingerprint.startswith("b")


def test_closing_ends_requests_and_the_thread(load):
    engine = load()
    request = engine.scheduler.submit([5], SamplingParams(max_new_tokens=900, ignore_eos=True))
    next(request)
    assert engine.is_alive
    assert engine.close()
    assert request.finish_reason == "cancelled"
    assert not engine.is_alive


def test_a_thread_that_fails_is_reported_and_ends_its_requests(load, monkeypatch):
    dead, has_died = [], threading.Event()

    def on_death(engine: Engine) -> None:
        dead.append(engine)
        has_died.set()

    engine = load(on_death=on_death)
    monkeypatch.setattr(engine.scheduler, "_step", lambda: 1 / 0)
    request = engine.scheduler.submit([5])
    with pytest.raises(ZeroDivisionError):
        list(request)
    assert has_died.wait(60)
    assert dead == [engine]
    assert isinstance(engine.error, ZeroDivisionError)
    assert not engine.is_alive


def test_the_estimate_counts_weights_draft_and_cache(demo):
    weights = sum(parameter.nbytes for parameter in demo.model.parameters())
    needed = EngineOptions().needed_bytes("demo")
    assert weights < needed
    assert EngineOptions(cache_bytes=1000).needed_bytes("demo") == weights + 1000
    assert EngineOptions(load={"draft": "prompt"}).needed_bytes("demo") == needed
    assert EngineOptions(load={"draft": "demo"}).needed_bytes("demo") == needed + weights
    assert EngineOptions(load={"dtype": "bfloat16"}, cache_bytes=1).needed_bytes("demo") == weights // 2 + 1 or (
        demo.dtype.itemsize == 2
    )
    assert EngineOptions(context=10).needed_bytes("demo") < needed


def test_the_memory_of_images_is_counted(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny").folder
    options = EngineOptions(cache_bytes=10**7)
    engine = Engine("tiny", LLM.load(folder), options)
    weights = sum(parameter.nbytes for parameter in engine.llm.model.parameters())
    library = engine.llm.images
    assert engine.nbytes == weights + 10**7 + library.max_bytes
    assert options.needed_bytes(str(folder)) >= 10**7 + library.max_bytes
    before = engine.unallocated_bytes
    library.encode(picture(40, 30))
    assert engine.unallocated_bytes == before - library.nbytes < before


def test_a_given_template_shows_images_too(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny").folder
    llm = LLM.load(folder)
    message = {"role": "user", "content": [{"type": "image", "image": picture(40, 30)}]}
    for template in (None, CHAT_TEMPLATE):
        engine = Engine("tiny", llm, EngineOptions(cache_bytes=10**7, template=template))
        assert engine.chat_template(date.today()).encode([message]) == llm.chat_template.encode([message])
