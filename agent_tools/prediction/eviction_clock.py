"""The moments at which LMCache evicts: a thread wakes about once a second. For comparison with its policy: after each request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

Float64 = npt.NDArray[np.float64]

PERIOD = 1.007
"""Seconds between two wake-ups. The thread sleeps 1 s, then evicts. LMCache 0.5.6 showed 1.002 s when idle to 1.028 s when
busy."""

EVERY_REQUEST = 0.0
"""The period that means one check after each request."""


class StoreDelay(NamedTuple):
    """The delay between a request's lookup and its store of what the engine computed. Ticks in between come before the store.

    The store is never later than the next lookup. This holds for a client that waits for its answers; with many clients at once
    it is too early.
    """

    per_request: float
    """Seconds for every request."""
    per_chunk: float
    """Additional seconds for each chunk that is not found."""


AT_ONCE = StoreDelay(0.0, 0.0)
_PERIODS = (1.001, 1.020)
"""The periods that a prediction allows for if the true period was not observed."""
_PERIODS_TRIED = (0.999, 1.040)
"""The periods that an observed clock may have. A busy server's period is longer."""


_MANY = 1e12
"""More ticks than any cache needs to empty. It bounds the count if the log's clock jumps."""


@dataclass(frozen=True)
class EvictionClock:
    """The moments at which the eviction thread wakes."""

    phase: float = 0.5
    """The first tick after the first request of a log, as a share of the period."""
    period: float = PERIOD
    """Seconds between two ticks; `EVERY_REQUEST` means a check after each request."""

    def first_tick(self, log: AccessLog) -> float:
        """Return the time of the first tick, seconds in the log's time.

        Raises:
            ValueError: The period is not a positive number, or times are not finite.
        """
        if not (self.period == EVERY_REQUEST or 0 < self.period < np.inf):
            raise ValueError(f"the eviction thread's period must be a positive number of seconds, got {self.period}")
        if not (np.isfinite(log.timestamps).all() and np.isfinite(self.phase)):
            raise ValueError("the log or the clock has times that are not finite numbers: mend or leave out these lines")
        return (float(log.timestamps[0]) if len(log) else 0.0) + self.phase * self.period


def possible_clocks(count: int) -> tuple[EvictionClock, ...]:
    """Return clocks spread evenly over what a log leaves open: the phase and the exact period.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"at least one clock is needed, got {count}")
    golden = 0.618034  # multiples of it, modulo 1, fill an interval evenly for any count
    shortest, longest = _PERIODS
    return tuple(
        EvictionClock((i + 0.5) / count, shortest + (longest - shortest) * ((0.5 + i * golden) % 1)) for i in range(count)
    )


class Poll(NamedTuple):
    """One reading of ``lmcache_mp_l1_eviction_loop_ticks_total``."""

    sent: float
    """When the request was sent, seconds in the log's time (Unix time for a live log)."""
    answered: float
    """When the answer arrived, seconds in the log's time."""
    ticks: float
    """The value of the counter."""


def observed_clock(log: AccessLog, polls: Sequence[Poll]) -> EvictionClock | None:
    """Return the clock of a running server, from polls of its tick counter; ``None`` if the polls show too few ticks.

    Each poll says which ticks came before its answer and which came after its sending. All polls must be of one process. Of all
    regular clocks, the result is the mean of the clocks that contradict the polls least (in seconds, summed). With 20 ticks and
    two polls a second, at irregular moments, it is right to about 20 ms in the middle of the polled time.
    """
    sent, answered, ticks = np.array(polls, np.float64).reshape(-1, 3).T
    stepped = np.flatnonzero(np.diff(ticks) == 1)  # several ticks between two polls say little
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
    """Return clocks spread evenly around an observed one.

    An observed clock is known to about 20 ms, and its ticks are not quite regular. If stores fail, such small shifts change the
    outcome.

    Args:
        clock: The observed clock.
        count: Number of clocks.
        seconds: Largest shift to either side.
        store_delay: Seconds between a request's lookup and its store. A tick within that time makes room for the store, as if the
            tick had come before the lookup. The log only records the lookup.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"at least one clock is needed, got {count}")
    shifts = seconds * (2 * (np.arange(count) + 0.5) / count - 1) - store_delay
    return tuple(EvictionClock(float(clock.phase + shift / clock.period) % 1, clock.period) for shift in shifts)


@compiled
def is_full(used: int, capacity: float, watermark: float) -> bool:
    """Return whether LMCache 0.5.6 evicts at a tick: ``used / total >= watermark``, with its rounding."""
    return used > 0 and capacity > 0 and used / capacity >= watermark


@compiled
def store_time(times: Float64, request: int, delay: StoreDelay, missing: int) -> float:
    """Return when a request stores its missing chunks, seconds in the log's time."""
    stored = float(times[request] + delay.per_request + delay.per_chunk * missing)
    return min(stored, float(times[request + 1])) if request + 1 < len(times) else stored


@compiled
def ticks_due(next_tick: float, now: float, period: float) -> int:
    """Return the number of ticks from ``next_tick`` to ``now``."""
    if now < next_tick:
        return 0
    return int(min((now - next_tick) / period, _MANY)) + 1
