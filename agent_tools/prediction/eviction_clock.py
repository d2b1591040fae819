"""When LMCache evicts: a thread that wakes about once a second, or, to compare with its policy object, after each request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

Float64 = npt.NDArray[np.float64]

PERIOD = 1.007
"""Seconds between two wake-ups. The thread sleeps 1 s, then evicts; 1.002 s idle to 1.028 s busy was seen on LMCache 0.5.6."""

EVERY_REQUEST = 0.0
"""A period that stands for one check after each request."""


class StoreDelay(NamedTuple):
    """How long after its lookup a request stores what the engine computed; ticks in between come before the store.

    Never later than the next lookup: of a client that waits for its answers this is so, and of many at once it is early.
    """

    per_request: float
    """Seconds."""
    per_chunk: float
    """Seconds for each chunk that is not found."""


AT_ONCE = StoreDelay(0.0, 0.0)
_PERIODS = (1.001, 1.020)
"""Range of periods that a prediction allows for when the true one was not observed."""
_PERIODS_TRIED = (0.999, 1.040)
"""Range of periods that an observed clock may have; a busy server's is longer."""


_MANY = 1e12
"""Ticks that no cache outlives, in a log whose clock jumps."""


@dataclass(frozen=True)
class EvictionClock:
    """The moments at which the eviction thread wakes."""

    phase: float = 0.5
    """The first tick after the first request of a log, as a share of the period."""
    period: float = PERIOD
    """Seconds between two ticks; `EVERY_REQUEST` for a check after each request."""

    def first_tick(self, log: AccessLog) -> float:
        """When it first wakes, seconds in the log's time.

        Raises:
            ValueError: If the period is not a positive number, or times are not finite.
        """
        if not (self.period == EVERY_REQUEST or 0 < self.period < np.inf):
            raise ValueError(f"the eviction thread's period must be a positive number of seconds, got {self.period}")
        if not (np.isfinite(log.timestamps).all() and np.isfinite(self.phase)):
            raise ValueError("the log, or the clock, has times that are not finite")
        return (float(log.timestamps[0]) if len(log) else 0.0) + self.phase * self.period


def possible_clocks(count: int) -> tuple[EvictionClock, ...]:
    """Clocks spread evenly over what a log leaves open: the phase, and the exact period."""
    if count < 1:
        raise ValueError(f"at least one clock is needed, got {count}")
    golden = 0.618034  # the additive recurrence that fills an interval evenly at any count
    shortest, longest = _PERIODS
    return tuple(
        EvictionClock((i + 0.5) / count, shortest + (longest - shortest) * ((0.5 + i * golden) % 1)) for i in range(count)
    )


class Poll(NamedTuple):
    """One reading of ``lmcache_mp_l1_eviction_loop_ticks_total``."""

    sent: float
    """When it was asked for, seconds in the log's time (Unix time for a live log)."""
    answered: float
    """When the answer was there."""
    ticks: float
    """The counter."""


def observed_clock(log: AccessLog, polls: Sequence[Poll]) -> EvictionClock | None:
    """The clock of a running server, from polls of its tick counter in one process life; ``None`` if they show too few.

    Each poll says which ticks came before its answer and which after its sending. Of all regular clocks, the mean of those that
    contradict the polls least (in seconds, summed): from 20 ticks and two polls a second, at irregular moments, right to about
    20 ms in the middle of the polled time.
    """
    sent, answered, ticks = np.array(polls, np.float64).reshape(-1, 3).T
    stepped = np.flatnonzero(np.diff(ticks) == 1)  # of several ticks at once little is known
    if len(stepped) < 2 or not len(log):
        return None
    start = float(log.timestamps[0])
    number = ticks[stepped + 1] - ticks[stepped[0] + 1]
    after, before = sent[stepped] - start, answered[stepped + 1] - start
    periods = np.arange(*_PERIODS_TRIED, 0.0005)
    firsts = np.arange(after[0] - 0.1, before[0] + 0.1, 0.002)
    times = firsts[:, None, None] + periods[:, None] * number
    wrong = (np.maximum(after - times, 0) + np.maximum(times - before, 0)).sum(axis=2)
    best = np.argwhere(wrong <= wrong.min() + 1e-9)
    first, period = float(firsts[best[:, 0]].mean()), float(periods[best[:, 1]].mean())
    return EvictionClock(first / period % 1, period)


def clocks_near(
    clock: EvictionClock, count: int, *, seconds: float = 0.04, store_delay: float = 0.02
) -> tuple[EvictionClock, ...]:
    """Clocks spread evenly around an observed one, which is known to some 20 ms and whose ticks are not quite regular.

    Where stores fail, such small shifts move the outcome.

    Args:
        clock: The observed one.
        count: How many.
        seconds: Spread to either side.
        store_delay: How long after its lookup a request stores. A tick within that time makes room for the store, as if it
            had come before the lookup, which is the only moment that a log has.
    """
    if count < 1:
        raise ValueError(f"at least one clock is needed, got {count}")
    shifts = seconds * (2 * (np.arange(count) + 0.5) / count - 1) - store_delay
    return tuple(EvictionClock(float(clock.phase + shift / clock.period) % 1, clock.period) for shift in shifts)


@compiled
def is_full(used: int, capacity: float, watermark: float) -> bool:
    """LMCache 0.5.6's test at a tick, with its rounding: ``used / total >= watermark``."""
    return used > 0 and capacity > 0 and used / capacity >= watermark


@compiled
def store_time(times: Float64, request: int, delay: StoreDelay, missing: int) -> float:
    """When a request stores its missing chunks."""
    stored = float(times[request] + delay.per_request + delay.per_chunk * missing)
    return min(stored, float(times[request + 1])) if request + 1 < len(times) else stored


@compiled
def ticks_due(next_tick: float, now: float, period: float) -> int:
    """Ticks from ``next_tick`` on that have happened by ``now``."""
    if now < next_tick:
        return 0
    return int(min((now - next_tick) / period, _MANY)) + 1
