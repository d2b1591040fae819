"""What the recommender looks at: one window of one cache, and, where there is one, its access log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from agent_tools.models import MB, Bounds, CacheConfig, CacheMetrics, EvictionPolicy, Health, Rung, Support
from agent_tools.prediction.eviction_clock import EvictionClock, Poll, clocks_near, observed_clock, possible_clocks
from agent_tools.prediction.forecast import Forecast, forecast
from agent_tools.prediction.hit_rate_curve import HitRateCurve, hit_rate_curve
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog

Floats = npt.NDArray[np.float64]

CLOCKS = 19
"""Eviction clocks tried for a prediction; the fewest that give a 90 % interval without assuming a distribution."""
MOST_POLLS = 300
"""Latest tick readings used; the thread's period drifts over longer times."""


@dataclass(frozen=True, eq=False)
class Observation:
    """A cache as it was in one window."""

    cache: str
    metrics: CacheMetrics
    config: CacheConfig
    support: Mapping[str, Support]
    bounds: Bounds
    health: Health
    log: AccessLog | None
    """All lookups since L1 was last empty (those before the window warm the model); ``None`` without a log."""
    polls: Sequence[Poll] = ()
    """Readings of the server's eviction tick counter: they tell when it evicts."""
    predicted: dict[ServerSetting, tuple[Floats, Floats]] = field(default_factory=dict)
    """Per setting that was predicted: chunks asked, (requests,), and hit, (clocks, requests), of the window's requests."""

    @cached_property
    def in_window(self) -> npt.NDArray[np.bool_]:
        """(requests,) which lookups of the log fall into the window."""
        if self.log is None:
            return np.zeros(0, dtype=np.bool_)
        start, end = self.metrics.window.start.timestamp(), self.metrics.window.end.timestamp()
        return (self.log.timestamps >= start) & (self.log.timestamps <= end)

    @property
    def rung(self) -> Rung:
        """The strongest evidence there is."""
        if self.in_window.any():
            return Rung.ACCESS_LOG
        return Rung.HISTOGRAMS if self.metrics.evicted_followed else Rung.COUNTERS

    @cached_property
    def curve(self) -> HitRateCurve | None:
        """Hits of the window's requests at every capacity; ``None`` without a log."""
        if self.log is None or self.rung is not Rung.ACCESS_LOG:
            return None
        return hit_rate_curve(self.log, counted=self.in_window)

    @cached_property
    def chunk_bytes(self) -> float | None:
        """L1 bytes that one chunk takes: measured, else as the log states; ``None`` when neither is known."""
        if self.metrics.kv_bytes_per_token and self.config.chunk_size:
            return self.metrics.kv_bytes_per_token * self.config.chunk_size
        return float(self.log.chunk_bytes) if self.log is not None and self.log.chunk_bytes else None

    @cached_property
    def clocks(self) -> Sequence[EvictionClock]:
        """When the server's eviction thread may wake: close to what was observed, else all that is possible."""
        observed = None if self.log is None else observed_clock(self.log, self.polls[-MOST_POLLS:])
        return possible_clocks(CLOCKS) if observed is None else clocks_near(observed, CLOCKS)

    @property
    def capacity_chunks(self) -> float | None:
        """L1 capacity in chunks."""
        if self.chunk_bytes is None or self.config.max_size_mb is None:
            return None
        return self.config.max_size_mb * MB / self.chunk_bytes

    @cached_property
    def largest_request(self) -> int | None:
        """Most whole chunks of one request in the window."""
        if self.log is None or self.rung is not Rung.ACCESS_LOG:
            return None
        return int(self.log.chunks_per_request[self.in_window].max(initial=0))


def forecast_of(seen: Observation) -> Forecast:
    """What other L1 sizes would give on all of an observation's log, under the watermark and ratio in force."""
    assert seen.log is not None  # noqa: S101  callers have a log
    config, here = seen.config, seen.capacity_chunks
    return forecast(
        seen.log,
        including=[] if here is None else [here],
        chunk_bytes=seen.chunk_bytes,
        watermark=config.eviction_watermark or 0.8,
        ratio=config.eviction_ratio or 0.2,
        policy="noop" if config.eviction_policy is EvictionPolicy.NOOP else "LRU",
    )
