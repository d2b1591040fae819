"""A proxy on loopback in front of a real server that spoils one chosen call, or every call from it on, in a chosen way.

Each call has a connection of its own, so that a connection can be refused for one call and not for the one before it.
"""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from enum import Enum
from urllib.parse import urlsplit


class Fault(str, Enum):
    """What goes wrong with a call."""

    REFUSED = "connection refused"
    RESET = "connection reset before the server had the call"
    HUNG = "time-out, not carried out"
    UNAVAILABLE = "503 instead of the server"
    LATE = "time-out after it was carried out"
    LOST = "answer lost after it was carried out"
    HALF = "half-written answer"
    GATEWAY = "504 after it was carried out"
    DELAYED = "504, and carried out a second later"
    BROKE = "500 in LMCache's words after it was carried out"
    KILL_BEFORE = "killed before the server had the call"
    KILL_AFTER = "killed after it was carried out"
    DISK_FULL = "the agent's disk is full from then on"
    OTHER_NAME = "another agent changes the server under another name"
    MANY_SERIES = "50,000 series more in the metrics"
    SERIES_TWICE = "a series twice in the metrics"


Call = int | tuple[str, int]
CARRIED_OUT = {Fault.LATE, Fault.LOST, Fault.HALF, Fault.GATEWAY, Fault.BROKE, Fault.KILL_AFTER}
LATENESS = 1.0
"""Seconds after its answer that a delayed call reaches the server."""
HANGS = {Fault.HUNG, Fault.LATE}
KILLS = {Fault.KILL_BEFORE, Fault.KILL_AFTER}
MEANWHILE = {Fault.DISK_FULL, Fault.OTHER_NAME}
"""Something else happens before the server has the call. The call itself goes well."""
METRICS = {
    # A client chose these names; nobody asked for a token under them, so all figures stay as they are.
    Fault.MANY_SERIES: "".join(
        f'lmcache_mp_lookup_requested_tokens_total{{cache_salt="flood-{number}",model_name="m"}} 0.0\n'
        for number in range(50_000)
    ),
    Fault.SERIES_TWICE: "lmcache_mp_event_bus_dropped_events_total 0.0\n" * 2,
}
"""What is added to a page of metrics."""


def _answer(status: str, body: str, content_type: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()


ANSWERS = {
    Fault.UNAVAILABLE: _answer("503 Service Unavailable", "<html>try again later</html>", "text/html"),
    Fault.GATEWAY: _answer("504 Gateway Timeout", "<html>the server did not answer</html>", "text/html"),
    Fault.DELAYED: _answer("504 Gateway Timeout", "<html>the server did not answer</html>", "text/html"),
    Fault.BROKE: _answer("500 Internal Server Error", '{"error": "it broke in the middle"}', "application/json"),
}


class FaultProxy:
    """Passes calls on to `target` (``http://host:port``) until it is armed. To be used on one event loop."""

    def __init__(self, target: str) -> None:
        """Nothing listens yet."""
        self._host, self._target_port = str(urlsplit(target).hostname), int(urlsplit(target).port or 80)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._released = asyncio.Event()
        self._late: list[asyncio.Future[None]] = []
        """Calls that are still to reach the server."""
        self.heal()

    @property
    def url(self) -> str:
        """Where to send calls."""
        return f"http://127.0.0.1:{self._port}"

    async def open(self) -> None:
        """Listen; on the same port as before, if there was one."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening; calls that hang are given up."""
        self._released.set()
        self.shut()

    def shut(self) -> None:
        """Refuse connections until it is opened again, as where a server has died."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def arm(
        self,
        call: Call,
        fault: Fault,
        *,
        lasting: bool = False,
        kill: Callable[[], None] = lambda: None,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Count calls from 1 again and spoil one.

        Args:
            call: Its number; or how it begins, and its number among those that do (not for a refused connection, which has to be
                refused before it can be known what was to be asked).
            fault: What happens to it.
            lasting: To every later one too, until healed; a refused connection is so always.
            kill: What the two faults that kill call.
            meanwhile: What happens before the call is passed on, for the faults of `MEANWHILE`.
        """
        self.heal()
        self._call, self._fault, self._lasting, self._kill, self._meanwhile = call, fault, lasting, kill, meanwhile
        self._refuse_from(1)

    def heal(self) -> None:
        """Pass on all calls again, and count them from 1. What was refused is so until `open`."""
        self.mend()
        self.calls: list[str] = []
        """Request line of each call that came, first to last."""
        self.changes: list[str] = []
        """Of those passed on to the server, the ones that change something."""

    async def settled(self) -> None:
        """Wait until all delayed calls have reached the server."""
        await asyncio.gather(*self._late, return_exceptions=True)
        self._late.clear()

    def mend(self) -> None:
        """Pass on all calls again, and go on counting."""
        self._released.set()
        self._released = asyncio.Event()
        self._call: Call = 0
        self._lasting = self._begun = False
        self._fault: Fault | None = None
        self._kill: Callable[[], None] = lambda: None
        self._meanwhile: Callable[[], Awaitable[None]] | None = None

    def _refuse_from(self, call: int) -> None:
        """Close the door before this call, if it is the one to be refused."""
        if self._fault is Fault.REFUSED and isinstance(self._call, int) and call >= self._call:
            self.shut()

    def _is_spoilt(self) -> bool:
        """Whether the call that came last is."""
        if isinstance(self._call, int):
            here = len(self.calls) == self._call
        else:
            begins, number = self._call
            same = [one for one in self.calls if one.startswith(begins)]
            here = len(same) == number and self.calls[-1].startswith(begins)
        spoilt = here or (self._begun and self._lasting)
        self._begun = self._begun or here
        return spoilt

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await _message(reader)
            if request is not None:
                self.calls.append(request.partition(b" HTTP/")[0].decode())
                await self._answered(request, writer)
        writer.close()

    async def _answered(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        released = self._released
        fault = self._fault if self._is_spoilt() else None
        self._refuse_from(len(self.calls) + 1)
        if fault in {Fault.REFUSED, Fault.RESET, Fault.KILL_BEFORE}:
            if fault is Fault.KILL_BEFORE:
                self._kill()
            _reset(writer)
            return
        if fault in MEANWHILE and self._meanwhile is not None:
            await self._meanwhile()
            fault = None
        answer = b""
        if fault is Fault.DELAYED:
            self._late.append(asyncio.ensure_future(self._passed_on_late(request)))
        if fault is None or fault in CARRIED_OUT or fault in METRICS:
            answer = await self._passed_on(request)
        if fault is Fault.KILL_AFTER:
            self._kill()
        if fault in HANGS:
            await released.wait()
        if fault is None or fault is Fault.HALF:
            writer.write(answer if fault is None else answer[: len(answer) // 2])
        elif fault in METRICS:
            writer.write(_with_more(answer, METRICS[fault]) if request.startswith(b"GET /metrics") else answer)
        else:
            writer.write(ANSWERS.get(fault, b""))
        await writer.drain()

    async def _passed_on_late(self, request: bytes) -> None:
        await asyncio.sleep(LATENESS)
        await self._passed_on(request)

    async def _passed_on(self, request: bytes) -> bytes:
        if not request.startswith(b"GET "):
            self.changes.append(request.partition(b" HTTP/")[0].decode())
        reader, writer = await asyncio.open_connection(self._host, self._target_port)
        try:
            writer.write(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"\r\nConnection: close", request, count=1))
            return await reader.read()
        finally:
            writer.close()


def _with_more(answer: bytes, lines: str) -> bytes:
    """The same page of metrics with more lines at its end."""
    body = answer.partition(b"\r\n\r\n")[2].decode()
    return _answer("200 OK", body + lines, "text/plain")


async def _message(reader: asyncio.StreamReader) -> bytes | None:
    """One request with its body; ``None`` from who only came to listen."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side gets a reset instead of an end."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
