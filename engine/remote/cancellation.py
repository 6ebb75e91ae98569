"""Ending an answer of a server from another thread than the one that reads it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


class Cancellation:
    """Ends one answer, or keeps it from beginning. Any thread may call `cancel`, at any time."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None  # while the answer is read

    def cancel(self) -> None:
        """End the connection; who reads it finds it broken. Closing it here would not wake that thread."""
        with self._lock:
            self.is_cancelled = True
            self._shut_down()

    def attach(self, response: httpx2.Response) -> None:
        """An answer has come, and is read now."""
        stream = response.extensions.get("network_stream")
        with self._lock:
            self._socket = stream.get_extra_info("socket") if stream is not None else None
            if self.is_cancelled:
                self._shut_down()

    def detach(self) -> None:
        """The answer has been read: its connection may serve other requests."""
        with self._lock:
            self._socket = None

    def _shut_down(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # that of TLS would not wait for its reader
