"""The bridge from asyncio to the scheduler's thread: a request's events, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from engine.decoding.loop import Event
from engine.decoding.scheduling.request import CANCELLED, Request
from engine.runtime.errors import BareloopError
from engine.serve.protocol.errors import ApiError, unavailable

MAX_UNREAD = 64  # events that a slow reader may be behind before its row pauses
MAX_TAKEN = 8  # events that are handed over at once: those of 64 replies with log-probabilities take 50 ms


class Generation:
    """One request. Iterating yields lists of events; leaving early, by an error or `cancel`, frees its row."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self.request: Request | None = None

    def notify(self) -> None:
        """Called in the scheduler's thread whenever the request has news."""
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop has ended, and nobody reads
            return

    async def start(self, submit: Callable[[], Request]) -> Request:
        """Submit the request, in a thread, as preparing a grammar may take a second."""
        task = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            self.request = await asyncio.shield(task)
        except asyncio.CancelledError:  # the client has left; the thread still ends
            task.add_done_callback(_cancel_result)
            raise
        return self.request

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        """Lists of new events, until the last. Raises the error of a request that failed or lost its engine."""
        request = self.submitted
        try:
            while True:
                self._news.clear()
                is_finished = request.is_finished
                events = request.take(MAX_TAKEN)
                if events:
                    yield events
                    await asyncio.sleep(0)  # other replies are next, where many are behind
                elif is_finished:
                    break
                else:
                    await self._news.wait()
        finally:
            self.cancel()
        if isinstance(request.error, BareloopError):  # not the client's: logits that are not finite, for example
            raise ApiError(500, str(request.error), headers={"x-should-retry": "false"}) from request.error
        if request.error is not None:
            raise request.error
        if request.finish_reason == CANCELLED and not request.is_cancelled:  # not by its reader
            raise unavailable("the engine has ended before the reply was complete")

    @property
    def submitted(self) -> Request:
        """The request, after `start`."""
        assert self.request is not None
        return self.request

    def cancel(self) -> None:
        """End the request before the next step, unless it has ended."""
        if self.request is not None and not self.request.is_finished:
            self.request.cancel()


def _cancel_result(submitting: asyncio.Future[Request]) -> None:
    """Cancel a request that was submitted for a client that had left."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
