"""When each request of a replay starts: the settings, the order and the clock of a replay."""

import heapq
import threading
import time
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agent_tools.models.config import Frozen

from .access_log import AccessLog

_TICK = 0.1
"""Seconds between two checks whether to halt."""


class ReplayedModel(Frozen):
    """How the engine of one model stores its KV."""

    world_size: Annotated[int, Field(gt=0, le=255)] = 1
    """KV ranks of the engine. Each stores its part of every chunk as an object of its own."""
    kv_bytes_per_token: Annotated[int, Field(gt=0, multiple_of=4)] | None = None
    """KV of each token over all ranks, bytes: a multiple of 4 for each rank. ``None``: as `ReplaySettings.kv_bytes_per_token`."""
    name: str | None = None
    """Name that the engine reports, if it is not the model's name in the log: one model may run with several world sizes."""
    retrieves: bool = True
    """Whether the engine loads what was found. False: its own cache has it, so it only releases the chunks."""


class ReplaySettings(Frozen):
    """The settings of a replay."""

    clients: Annotated[int, Field(gt=0, le=64)] = 4
    """Number of engines that send requests at the same time."""
    pace: Annotated[float, Field(gt=0)] | None = None
    """Time compression: 60 replays an hour in a minute. ``None``: send as fast as the server answers."""
    kv_bytes_per_token: Annotated[int, Field(gt=0, multiple_of=4)] = 128
    """Size of the KV made for each token, bytes, over all ranks."""
    models: dict[str, ReplayedModel] = {}
    """How the engines of single models store their KV, by the model's name in the log. Others have one rank."""
    model: str = "replay"
    """Model name for the requests of a log that names no model."""
    limit_seconds: Annotated[float, Field(gt=0)] | None = None
    """No request starts after this many seconds."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 20
    """The longest wait for the answer to one call, seconds. A server that is gone is noticed sooner."""


class Schedule:
    """Hands out the requests of a log in order, each at its time and after the request that it builds on has ended.

    With a pace, a turn that the log gives a think time instead of a time of its own starts after the session's turn before has
    really ended (closed loop): as long after it as in the log, where that is the assumed time of the answer and the think time.
    """

    def __init__(self, log: AccessLog, settings: ReplaySettings) -> None:
        self._due = (log.timestamps - log.timestamps[:1]) / settings.pace if settings.pace else np.zeros(len(log))
        self._limit = settings.limit_seconds
        self._builds_on = builds_on(log)
        before = turns_before(log) if settings.pace else np.full(len(log), -1)
        self._later = {int(turn): number for number, turn in enumerate(before) if turn >= 0}  # the turn that waits for each
        self._gaps = self._due - self._due[before]
        self._known = [(due, number) for number, due in enumerate(self._due.tolist()) if before[number] < 0]  # a heap
        self._paced, self._running = settings.pace is not None, 0
        self._ended = np.zeros(len(log), dtype=np.bool_)
        self._one_ended = threading.Condition()
        self._door = threading.Lock()
        self._begin = 0.0
        self.halted = threading.Event()
        """Set this event to start no further request."""
        self.started = np.full(len(log), np.nan)
        """(requests,) seconds from `begin` to the start of each request; NaN before the start."""
        self.lag_seconds = 0.0
        """The longest delay of a start behind its time, seconds."""

    def begin(self) -> None:
        """Start the clock."""
        self._begin = time.monotonic()

    def now(self) -> float:
        """Return the seconds since `begin`."""
        return time.monotonic() - self._begin

    def next_request(self) -> int | None:
        """Wait until the next request may start, and return it; ``None`` if no other request will start."""
        with self._door, self._one_ended:
            while not self.halted.is_set():
                now = self.now()
                due, request = self._known[0] if self._known else (np.inf, -1)
                if max(due, now) > (np.inf if self._limit is None else self._limit) or request < 0:
                    if not self._running or not self._later or (self._limit is not None and now > self._limit):
                        return None
                    self._one_ended.wait(_TICK)  # a turn that still runs may be followed by another
                elif due > now:
                    self._one_ended.wait(min(due - now, _TICK))
                elif self._runs(self._builds_on[request]):
                    self._one_ended.wait(_TICK)
                else:
                    heapq.heappop(self._known)
                    self._running += 1
                    self.started[request] = now
                    if self._paced:
                        self.lag_seconds = max(self.lag_seconds, now - due)
                    return request
            return None

    def ended(self, request: int) -> None:
        """Report the end of a request, so that requests that build on it, and the session's next turn, may start."""
        with self._one_ended:
            self._ended[request] = True
            self._running -= 1
            later = self._later.pop(request, None)
            if later is not None:
                heapq.heappush(self._known, (self.now() + float(self._gaps[later]), later))
            self._one_ended.notify_all()

    def _runs(self, request: int) -> bool:
        """Return whether a request has started and not ended. In a closed loop, a later one may be due before it has started."""
        return request >= 0 and not np.isnan(self.started[request]) and not self._ended[request]


def turns_before(log: AccessLog) -> npt.NDArray[np.int64]:
    """Return (requests,) the session's turn before each turn that has a think time and no time of its own; -1 for the others."""
    before = np.full(len(log), -1, dtype=np.int64)
    if log.sessions is None or log.think_seconds is None:
        return before
    order = np.argsort(log.sessions, kind="stable")
    same = (log.sessions[order[1:]] == log.sessions[order[:-1]]) & (log.sessions[order[1:]] >= 0)
    before[order[1:][same]] = order[:-1][same]
    return np.where(np.isfinite(log.think_seconds), before, -1)


def builds_on(log: AccessLog) -> npt.NDArray[np.int64]:
    """Return (requests,) the request that each request builds on; -1 if there is none.

    A request builds on the request that first had its longest prefix known before.
    """
    request_of = np.repeat(np.arange(len(log)), log.chunks_per_request)
    first = np.flatnonzero(np.diff(np.maximum.accumulate(log.chunk_ids), prepend=-1))  # ids are numbered by first appearance
    owner = request_of[first][log.chunk_ids]
    latest = np.full(len(log), -1, dtype=np.int64)
    np.maximum.at(latest, request_of, np.where(owner < request_of, owner, -1))
    return latest


def first_that_fit(
    log: AccessLog, seconds: float, *, requests_per_second: float = 150, chunks_per_second: float = 1_800
) -> tuple[AccessLog, float]:
    """Return the first requests of a log that can be replayed in the given time, and the time compression for it.

    The function assumes that a request costs ``1 / requests_per_second + chunks / chunks_per_second`` seconds of the replay. The
    compression (`ReplaySettings.pace`) spreads the requests over the given time and is never below 1 (real time). The defaults
    leave a third of what two cores do (250 and 3,000 a second, server and clients together, on chunks of 4 KiB to 32 KiB).

    Raises:
        ValueError: Not even one request fits.
    """
    cost = np.cumsum(1 / requests_per_second + log.chunks_per_request / chunks_per_second)
    fitting = int(np.searchsorted(cost, seconds, side="right"))
    if not fitting:
        msg = f"not even one request fits into {seconds:g} s: the first takes about {cost[0]:.3g} s; give more time"
        raise ValueError(msg)
    part = log.select(slice(0, fitting))
    return part, max(1.0, part.duration / seconds)
