"""How long and how many clients may keep a door of ours busy before they have sent a whole request.

Uvicorn waits for a request without end, and its ``limit_concurrency`` counts those who only wait: some hundred half-sent requests
would keep everybody else out. Here a client has a bounded time to send its request, and the oldest of too many such clients
makes way for the newest.
"""

import asyncio
from itertools import count
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS_TO_ASK = 10.0
"""From the connection, or from the first byte of the next request, to the last byte of a request."""
MOST_CONNECTIONS = 256
"""Below the number of files that a process may usually have open, 1024."""
MOST_HEADERS = 2**16
"""Bytes of the headers of a request."""


_TURNS = count(1)


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 for clients that send whole requests in time."""

    given_up_at: asyncio.TimerHandle | None = None
    """Set while a request is awaited."""
    turn = 0
    """Place among those that wait. Clocks of event loops are too coarse to tell clients of one millisecond apart."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request; with too many connections, close the one that has waited longest."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > MOST_CONNECTIONS:
            asking = [one for one in self.connections if isinstance(one, ImpatientProtocol) and one.given_up_at is not None]
            min(asking, key=lambda one: one.turn).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request. The time for it is not extended by parts that trickle in."""
        super().data_received(data)
        if self.conn.their_state in {h11.IDLE, h11.SEND_BODY}:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self.given_up_at is None:
            self.given_up_at = self.loop.call_later(SECONDS_TO_ASK, self.transport.abort)
            self.turn = next(_TURNS)

    def _stop_waiting(self) -> None:
        if self.given_up_at is not None:
            self.given_up_at.cancel()
            self.given_up_at = None


LIMITS: dict[str, Any] = {
    "http": ImpatientProtocol,
    "h11_max_incomplete_event_size": MOST_HEADERS,
    "ws": "none",
    "server_header": False,
}
"""Options of Uvicorn for a door of ours."""
