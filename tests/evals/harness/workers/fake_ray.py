"""Ray without processes: actors are objects of this process, which die after a record if a test tells them to."""

from __future__ import annotations

import sys
import threading
import types
from random import Random


class RayError(Exception):
    """As ray.exceptions.RayError."""


class ActorDiedError(RayError):
    """As ray.exceptions.ActorDiedError, whose text has several lines."""

    def __str__(self):
        return "The actor died unexpectedly.\n\tclass_name: Host"


class RayTaskError(RayError):
    """As ray.exceptions.RayTaskError: an error of the function itself."""

    def __init__(self, cause):
        super().__init__(f"Traceback …\n{cause}")
        self.cause = cause


class FakeRay(types.ModuleType):
    """`dies(number)`: whether the call of this number ends its actor. `places`: how many actors have room at a time."""

    def __init__(self, dies=lambda number: False, places=1_000):
        super().__init__("ray")
        self.places, self.begins = places, []
        self.exceptions = types.ModuleType("ray.exceptions")
        for error in (RayError, ActorDiedError, RayTaskError):
            setattr(self.exceptions, error.__name__, error)
        self.dies, self.calls, self.actors, self.options, self.is_down = dies, 0, [], {}, False
        self._lock, self.changed = threading.Lock(), threading.Event()

    def install(self, monkeypatch):
        """Put it in the place of Ray."""
        monkeypatch.setitem(sys.modules, "ray", self)
        monkeypatch.setitem(sys.modules, "ray.exceptions", self.exceptions)
        return self

    def init(self, **options):
        self.options = options

    def shutdown(self):
        self.is_down = True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, **resources):
        return lambda kind: _Kind(self, kind)

    def wait(self, references, timeout):
        (reference,) = references
        if isinstance(reference, _Call):
            reference.done.wait(min(timeout, 0.01))
            return ([reference], []) if reference.done.is_set() else ([], [reference])
        return references, []

    def get(self, reference):
        if isinstance(reference, _Call):
            reference = reference.result
        if isinstance(reference, Exception):
            raise reference
        return reference[0]

    def kill(self, actor):
        actor.is_dead = True

    def counted(self):
        """Count a call; raise if the actor dies with it."""
        with self._lock:
            self.calls += 1
            if self.dies(self.calls):
                raise ActorDiedError


class _Kind:
    def __init__(self, ray, kind):
        self.ray, self.kind = ray, kind

    def options(self, **_):
        return self

    def remote(self):
        actor = _Actor(self.ray, self.kind())
        self.ray.actors.append(actor)
        return actor


class _Call:
    """A call that has begun in a thread of its own, as soon as its actor has a place."""

    def __init__(self, actor, function, *arguments):
        self.done, self.result = threading.Event(), None
        threading.Thread(target=self._run, args=(actor, function, arguments), daemon=True).start()

    def _run(self, actor, function, arguments):
        while not actor.has_place() and not actor.is_dead:
            actor.ray.changed.wait(0.005)
        self.result = function(*arguments)
        self.done.set()


class _Actor:
    def __init__(self, ray, host):
        self.ray, self.host, self.is_dead = ray, host, False
        self.begin, self.answer = _Method(self, self._start), _Method(self, self._answer)
        self.__ray_ready__ = _Method(self, lambda: _Call(self, lambda: (True,)))

    def has_place(self):
        alive = [actor for actor in self.ray.actors if not actor.is_dead]
        return self in alive[: self.ray.places]

    def _start(self, *arguments):
        self.ray.begins.append(arguments)
        return _Call(self, self._begin, *arguments)

    def _begin(self, *arguments):
        try:
            self._live()
            return (self.host.begin(*arguments),)
        except RayError as error:
            return error
        except Exception as error:
            return RayTaskError(error)

    def _answer(self, unit):
        try:
            for records in self.host.answer(unit):
                yield (records,)
                self._live()
        except RayError as error:
            yield error
        except Exception as error:
            yield RayTaskError(error)

    def _live(self):
        if self.is_dead:
            raise ActorDiedError
        try:
            self.ray.counted()
        except ActorDiedError:
            self.is_dead = True
            raise


class _Method:
    def __init__(self, actor, function):
        self.actor, self.function = actor, function

    def options(self, **_):
        return self

    def remote(self, *arguments):
        return self.function(*arguments)


def at_random(seed, share):
    """Deaths at random, seeded; at least three calls lie between two, as three in a row would end the run."""
    random, deaths = Random(seed), [0]

    def dies(number):
        if number - deaths[-1] <= 3 or random.random() >= share:
            return False
        deaths.append(number)
        return True

    return dies
