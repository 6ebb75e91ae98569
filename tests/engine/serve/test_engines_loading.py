"""Names of models, and real ones that are loaded, unloaded and broken."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Awaitable
from pathlib import Path

import pytest

from engine import SamplingParams
from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError, UsageError
from engine.serve.engine import EngineOptions
from engine.serve.engines import Engines, public_names
from engine.serve.protocol.errors import ApiError

GUARD = 60.0  # seconds: a hang, not a slow machine


def run(test: Awaitable[None]) -> None:
    async def guarded() -> None:
        await asyncio.wait_for(test, GUARD)

    asyncio.run(guarded())


def test_a_models_name_is_its_alias_or_what_it_is_called(tmp_path):
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (tmp_path / "tiny.Q4.gguf").write_bytes(b"GGUF")
    models = ["demo", str(folder), str(tmp_path / "tiny.Q4.gguf"), "Qwen/Qwen2.5-0.5B", "ollama:llama3.2:1b"]
    names = ["demo", "My-Model", "tiny.Q4", "Qwen/Qwen2.5-0.5B", "ollama:llama3.2:1b"]
    assert public_names(models) == dict(zip(names, models, strict=True))
    assert [*public_names(models, ["gpt-4", "small"])] == ["gpt-4", "small", *names[2:]]


@pytest.mark.parametrize(
    ("models", "aliases", "message"),
    [
        (["demo", "demo"], [], "two models are called 'demo'"),
        (["demo", "smollm2"], ["x", "x"], "two models are called 'x'"),
        (["demo"], ["a", "b"], "--alias has 2 names for 1 of --model"),
        (["demo"], [" "], "--alias ' '"),
        (["demo"], ["a\nb"], "--alias 'a"),
    ],
)
def test_unclear_names_are_refused(models, aliases, message):
    with pytest.raises(UsageError, match=message):
        public_names(models, aliases)


def copy_of_demo(folder: Path) -> Path:
    shutil.copytree(embedded.FOLDER, folder)
    return folder


def test_a_corrupt_checkpoint_or_a_folder_that_is_no_model_is_one_line_until_it_is_repaired(tmp_path):
    async def test() -> None:
        broken, empty = copy_of_demo(tmp_path / "broken"), tmp_path / "empty"
        empty.mkdir()
        weights = next(broken.glob("*.safetensors"))
        content = weights.read_bytes()
        weights.write_bytes(content[: len(content) // 2])
        engines = Engines(public_names([str(broken), str(empty)]), EngineOptions(models=2))
        for name in ("broken", "empty"):
            with pytest.raises(ApiError) as caught:
                async with engines.use(name):
                    pass
            assert caught.value.status == 500
            assert caught.value.message.startswith(f"the model {name} cannot be loaded: ")
            assert "\n" not in caught.value.message
        weights.write_bytes(content)
        async with engines.use("broken") as engine:
            assert engine.is_alive
        assert engines.close()

    run(test())


def test_two_models_that_do_not_fit_together_take_turns_and_leave_nothing_behind(tmp_path):
    async def test() -> None:
        models = public_names([str(copy_of_demo(tmp_path / name)) for name in "ab"])
        options = EngineOptions(cache_bytes=10**7, models=2)
        notes: list[str] = []
        engines = Engines(models, options, note=notes.append)
        room = int(1.5 * options.needed_bytes(models["a"]))
        engines._free = lambda _: room - sum(each.nbytes - each.unallocated_bytes for each in engines.loaded)
        gone = []
        for name in "aba":
            async with engines.use(name) as engine:
                ids = engine.llm.encode("Once upon a time")
                assert len(list(engine.scheduler.submit(ids, SamplingParams(max_new_tokens=3)))) == 3
                gone.append(weakref.ref(engine.llm))
            del engine
        gc.collect()
        assert [reference() is None for reference in gone] == [True, True, False]
        assert [note.split(",")[0].split(" in ")[0] for note in notes] == [
            *("a: loaded", "a: unloaded", "b: loaded", "b: unloaded", "a: loaded")
        ]
        assert engines.close()

    run(test())


def test_closing_tells_whether_a_model_is_still_being_loaded(monkeypatch):
    async def test() -> None:
        engines = Engines({"a": "a"}, EngineOptions())
        is_loading.clear()
        task = asyncio.create_task(engines.preload())
        await asyncio.to_thread(is_loading.wait, GUARD)
        task.cancel()  # as in the end of the process, when the thread goes on
        await asyncio.sleep(0)

    is_loading, may_end = threading.Event(), threading.Event()

    def load(self: EngineOptions, source: str) -> int:
        is_loading.set()
        assert may_end.wait(GUARD)
        raise BareloopError("no model")

    monkeypatch.setattr(EngineOptions, "needed_bytes", load)
    run(test())
    engines = Engines({"a": "a"}, EngineOptions())
    assert not engines.close()
    loader = next(thread for thread in threading.enumerate() if thread.name == "model loader")
    may_end.set()
    loader.join(GUARD)
    assert engines.close()
