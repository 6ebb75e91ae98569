"""Several models by name, which share the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from engine.runtime.errors import BareloopError
from engine.serve import engines as module
from engine.serve.engine import Engine, EngineOptions
from engine.serve.engines import Engines
from engine.serve.protocol.errors import ApiError

GUARD = 60.0  # seconds: a hang, not a slow machine


def run(test: Awaitable[None]) -> None:
    async def guarded() -> None:
        await asyncio.wait_for(test, GUARD)

    asyncio.run(guarded())


async def turns(count: int = 30) -> None:
    """Let all tasks go on as far as they can."""
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class FakeEngine:
    name: str
    nbytes: int
    unallocated_bytes: int = 0
    max_length: int = 512
    is_alive: bool = True
    closed: bool = False

    def close(self) -> bool:
        self.closed = True
        return True


@dataclass
class Machine:
    """A computer with a certain memory, whose models load at once and take what their names say: "a-30"."""

    memory: int
    loads: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    engines: Engines = field(init=False)

    def free(self, device: object) -> int:
        return self.memory - sum(engine.nbytes for engine in self.engines.loaded)

    def load(self, name: str, source: str, *_: object) -> FakeEngine:
        self.loads.append(name)
        if name in self.failing:
            raise BareloopError(f"{name} is broken")
        return FakeEngine(name, int(source.partition("-")[2]))

    @property
    def loaded(self) -> list[str]:
        return [engine.name for engine in self.engines.loaded]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make a machine: machine(100, "a-30", "b-80")."""

    def create(memory: int, *models: str) -> Machine:
        async def at_once(work: Callable[[], object]) -> object:
            await asyncio.sleep(0)
            return work()

        result = Machine(memory)
        names = {model.partition("-")[0]: model for model in models}
        result.engines = Engines(names, EngineOptions(), free=result.free)
        monkeypatch.setattr(Engine, "load", result.load)
        monkeypatch.setattr(EngineOptions, "needed_bytes", lambda self, source: int(source.partition("-")[2]))
        monkeypatch.setattr(module, "release_freed_memory", lambda: None)
        monkeypatch.setattr(module, "kernels_of", lambda engine: "")
        monkeypatch.setattr(module, "in_thread", at_once)
        return result

    return create


class User:
    """A request that uses a model until it is told to end."""

    def __init__(self, engines: Engines, name: str) -> None:
        self.has_engine, self._end = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._use(engines, name))

    async def _use(self, engines: Engines, name: str) -> None:
        async with engines.use(name) as engine:
            assert engine.name == name
            self.has_engine.set()
            await self._end.wait()
            assert not engine.closed

    async def end(self) -> None:
        self._end.set()
        await self.task


def test_no_name_is_the_first_model_and_an_unknown_one_lists_all(machine):
    engines = machine(100, "a-1", "b-1").engines
    assert [engines.resolve(name) for name in (None, "", "a", "b")] == ["a", "a", "a", "b"]
    with pytest.raises(ApiError) as caught:
        engines.resolve("c\n" * 500)
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert caught.value.message.endswith("this server has: a, b")
    assert len(caught.value.message) < 200


def test_a_model_is_loaded_once_by_all_who_want_it(machine):
    async def test() -> None:
        computer = machine(100, "a-30", "b-30")
        assert computer.engines.problem() == "a is being loaded"
        users = [User(computer.engines, name) for name in "abba"]
        for user in users:
            await user.has_engine.wait()
        for user in users:
            await user.end()
        assert computer.loads == ["a", "b"]
        assert computer.engines.problem() is None

    run(test())


def test_who_holds_on_to_a_model_is_told_before_it_is_unloaded(machine):
    async def test() -> None:
        computer = machine(100, "a-60", "b-60")
        told = []
        computer.engines.on_unload = lambda engine: told.append((engine.name, engine.closed))
        assert not computer.engines.is_wanted("a")
        user = User(computer.engines, "a")
        await turns(2)
        assert computer.engines.is_wanted("a")
        await user.end()
        await User(computer.engines, "b").end()
        assert told == [("a", False)]
        assert [computer.engines.is_wanted(name) for name in "ab"] == [False, True]

    run(test())


def test_a_variant_is_loaded_with_other_options():
    options = EngineOptions(load={"dtype": "float32", "quant": "auto"}, context=7)
    engines = Engines({"a": "a", "a, int8": "a"}, options, variants={"a, int8": {"quant": "int8"}})
    assert engines.options_of("a") == options
    assert engines.options_of("a, int8") == EngineOptions(load={"dtype": "float32", "quant": "int8"}, context=7)


def test_the_least_recently_used_model_makes_room(machine):
    async def test() -> None:
        computer = machine(100, "a-40", "b-40", "c-40")
        for name in "abac":
            await User(computer.engines, name).end()
        assert computer.loaded == ["a", "c"]
        assert computer.engines.problem() is None

    run(test())


def test_as_many_models_are_unloaded_as_necessary(machine):
    async def test() -> None:
        computer = machine(100, "a-30", "b-30", "c-30", "d-70")
        for name in "abcd":
            await User(computer.engines, name).end()
        assert computer.loaded == ["c", "d"]

    run(test())


def test_a_model_in_use_is_not_unloaded_but_waited_for(machine):
    async def test() -> None:
        computer = machine(100, "a-60", "b-60")
        first = User(computer.engines, "a")
        await first.has_engine.wait()
        second = User(computer.engines, "b")
        await turns()
        assert computer.loaded == ["a"]
        await first.end()
        await second.has_engine.wait()
        assert computer.loaded == ["b"]
        await second.end()

    run(test())


def test_a_model_in_constant_use_does_not_starve_the_others(machine):
    async def test() -> None:
        computer = machine(100, "a-60", "b-60")
        first = User(computer.engines, "a")
        await first.has_engine.wait()
        waiting = User(computer.engines, "b")
        await turns()
        late = User(computer.engines, "a")
        await turns()
        assert not late.has_engine.is_set()  # it came after b's
        await first.end()
        await waiting.has_engine.wait()
        assert not late.has_engine.is_set()
        await waiting.end()
        await late.end()
        assert computer.loads == ["a", "b", "a"]

    run(test())


def test_a_model_that_never_fits_is_refused_and_nothing_is_unloaded_for_it(machine):
    async def test() -> None:
        computer = machine(100, "a-60", "b-160")
        busy = User(computer.engines, "a")
        await busy.has_engine.wait()
        with pytest.raises(ApiError) as caught:
            await User(computer.engines, "b").task
        assert caught.value.status == 503
        assert "b needs" in caught.value.message
        assert computer.loaded == ["a"]
        await busy.end()

    run(test())


def test_nothing_is_unloaded_for_clients_who_have_left(machine):
    async def test() -> None:
        computer = machine(100, "a-60", "b-60")
        busy = User(computer.engines, "a")
        await busy.has_engine.wait()
        impatient = User(computer.engines, "b")
        await turns()
        impatient.task.cancel()
        await turns()
        await busy.end()
        await turns()
        assert computer.loaded == ["a"]
        await User(computer.engines, "b").end()
        assert computer.loaded == ["b"]

    run(test())


def test_a_client_who_leaves_while_a_model_is_loaded_does_not_spoil_it_for_others(machine):
    async def test() -> None:
        computer = machine(100, "a-60")
        impatient, patient = User(computer.engines, "a"), User(computer.engines, "a")
        await asyncio.sleep(0)
        impatient.task.cancel()
        await patient.end()
        assert computer.loads == ["a"]

    run(test())


def test_a_load_that_fails_is_an_error_with_its_reason_and_tried_again(machine):
    async def test() -> None:
        computer = machine(100, "a-10", "b-10")
        computer.failing = {"b"}
        await User(computer.engines, "a").end()
        users = [User(computer.engines, "b") for _ in range(2)]
        for user in users:
            with pytest.raises(ApiError, match="the model b cannot be loaded: b is broken") as caught:
                await user.task
            assert caught.value.status == 500
        assert computer.loads == ["a", "b"]
        computer.failing = set()
        await User(computer.engines, "b").end()
        assert computer.engines.problem() is None

    run(test())


def test_the_first_model_is_preloaded_and_its_own_error_raised(machine):
    async def test() -> None:
        computer = machine(100, "a-10", "b-10")
        assert (await computer.engines.preload()).name == "a"
        computer = machine(100, "a-10")
        computer.failing = {"a"}
        with pytest.raises(BareloopError, match=r"^a is broken$"):
            await computer.engines.preload()
        assert computer.engines.problem() == "a cannot be loaded"

    run(test())


def test_a_dead_engine_is_a_problem(machine):
    async def test() -> None:
        computer = machine(100, "a-10")
        async with computer.engines.use("a") as engine:
            engine.is_alive = False
        assert computer.engines.problem() == "the engine of a has ended"

    run(test())


def test_models_are_described_with_their_window_once_it_is_known(machine):
    async def test() -> None:
        engines = machine(100, "a-10").engines
        assert set(engines.describe("a")) == {"id", "object", "created", "owned_by"}
        await engines.preload()
        assert engines.describe("a")["max_model_len"] == 512
        assert engines.describe("a")["object"] == "model"

    run(test())
