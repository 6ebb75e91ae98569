"""Request: one prompt that was submitted to a scheduler, and the events of its reply."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.decoding.grammar import Matcher
from engine.decoding.images import Image
from engine.decoding.loop import Event, Reply
from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.prefix_cache import Prompt, Slot
from engine.decoding.scheduling.prompt_logprobs import Entry, PromptLogprobs
from engine.runtime.errors import BareloopError

CANCELLED = "cancelled"


class QueueFullError(BareloopError):
    """As many requests are waiting as the scheduler's queue holds."""


class ClosedError(BareloopError):
    """The scheduler has been closed, and takes no more requests."""


@dataclass(frozen=True)
class Usage:
    """Token counts of one call. `cached_tokens`: of the prompt, not computed because another row had them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Request:
    """A prompt and its reply. Iterating yields the events and waits for them; any thread may read or cancel.

    After the last event `finish_reason` is `stop`, `length` or `cancelled`; iterating raises the error of a request
    that failed. `notify` is called in the scheduler's thread whenever there is something new. A request that is paused,
    because its reader is `max_unread` events behind, keeps its row.
    """

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        continues: bool,
        wait: Callable[[Request], None],
        wake: Callable[[], None],
        notify: Callable[[], None] | None = None,
        max_unread: int | None = None,
        alternatives: int = 0,
    ) -> None:
        """`alternatives`: likeliest tokens in each entry of `prompt_logprobs`."""
        self.number = 0  # in the order of submission
        if max_unread is not None and max_unread < 1:
            raise BareloopError(f"max_unread is {max_unread}; use 1 or more")
        self.prompt = prompt
        self.params = params
        self.continues = continues
        self.slot: Slot | None = None  # while it is being computed, or if its prompt is
        self.images: list[Image] = []  # of the prompt, which stay in memory until the request ends
        self.reserved_bytes = 0
        self.matcher: Matcher | None = None  # of the grammar
        self.reply: Reply | None = None  # once its prompt is computed
        self.scores: PromptLogprobs | None = None  # of a scored prompt, once it is computed
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.error: BaseException | None = None
        self.is_cancelled = False
        self.submitted = time.perf_counter()
        self.admitted = self.first_token = self.finished = 0.0  # as `submitted`; 0 before
        self.changed = threading.Condition()
        self._unread: deque[Event] = deque()
        self._wait, self._wake, self._notify, self._max_unread = wait, wake, notify, max_unread
        self._alternatives = alternatives

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while True:
            is_finished = self.is_finished  # before the last event is looked for
            for event in self.take(1):
                return event
            if is_finished:
                if self.error is not None:
                    raise self.error
                raise StopIteration
            self._wait(self)

    def take(self, count: int | None = None) -> list[Event]:
        """The events that have not been read, or the first `count` of them, without waiting."""
        with self.changed:
            was_paused = self.is_paused
            number = len(self._unread) if count is None else min(count, len(self._unread))
            events = [self._unread.popleft() for _ in range(number)]
        if was_paused and not self.is_paused:
            self._wake()
        return events

    def cancel(self) -> None:
        """Stop before the next step. What was generated so far can still be read."""
        self.is_cancelled = True
        self._wake()

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def has_news(self) -> bool:
        """Whether iterating would not wait."""
        return bool(self._unread) or self.is_finished

    @property
    def running_slot(self) -> Slot:
        """The slot of a request that is being computed."""
        assert self.slot is not None
        return self.slot

    @property
    def is_paused(self) -> bool:
        """Whether the reader is so far behind that no more is generated."""
        return self._max_unread is not None and len(self._unread) >= self._max_unread

    @property
    def prompt_logprobs(self) -> list[Entry | None] | None:
        """For each token of the prompt its log-probability after those before it, and the likeliest tokens there.

        The first has None, and so have the vectors of images. Natural logarithms of one softmax in float32, so that a
        token is the likeliest if its log-probability equals that of the first alternative. None without a request for
        them, and before the reply.
        """
        return None if self.scores is None else self.scores.entries(self.prompt.ids, self._alternatives)

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt.ids), self.completion_tokens, self.cached_tokens)

    @property
    def queue_seconds(self) -> float:
        """From its submission to its admission, or until now."""
        return (self.admitted or self.finished or time.perf_counter()) - self.submitted

    @property
    def prefill_seconds(self) -> float:
        """From its admission to its first token, with the steps of others in between."""
        return (self.first_token or self.finished or time.perf_counter()) - self.admitted if self.admitted else 0.0

    @property
    def decode_seconds(self) -> float:
        """From its first token to its last."""
        return (self.finished or time.perf_counter()) - self.first_token if self.first_token else 0.0

    def push(self, events: list[Event]) -> None:
        """Add events. Called by the scheduler."""
        self.first_token = self.first_token or time.perf_counter()
        self.completion_tokens += len(events)
        with self.changed:
            self._unread += events
        self._announce()

    def finish(self, reason: str | None, error: BaseException | None = None) -> None:
        """Set the end of the request. Called by the scheduler, once."""
        self.finished = time.perf_counter()
        self.images = []
        self.finish_reason, self.error = reason, error
        self._announce()

    def _announce(self) -> None:
        with self.changed:
            self.changed.notify_all()
        if self._notify is not None:
            try:
                self._notify()
            except Exception as error:  # it is the reader's, and must not stop the others
                logging.getLogger("bareloop").warning("the notification of a request failed: %r", error)
