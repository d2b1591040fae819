"""What the recommender looks at: one window of one cache, and, where there is one, its access log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from agent_tools.models import MB, Bounds, CacheConfig, CacheMetrics, Health, Rung, Support
from agent_tools.models.cost import Economics, KvSize
from agent_tools.models.engine import EngineSpeed
from agent_tools.prediction.cost import GB, break_even_bandwidth, kv_size, seconds_saved_per_token
from agent_tools.prediction.eviction_clock import (
    AT_ONCE,
    EvictionClock,
    Poll,
    StoreDelay,
    clocks_near,
    observed_clock,
    possible_clocks,
)
from agent_tools.prediction.hit_rate_curve import HitRateCurve, hit_rate_curve, hits_per_request
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CLOCKS = 19
"""Eviction clocks tried for a prediction; the fewest that give a 90 % interval without assuming a distribution."""


@dataclass(frozen=True, eq=False)
class PredictedHits:
    """What the model says of the window's requests under one setting."""

    asked: Floats
    """(requests,) chunks asked for."""
    l1: Floats
    """(clocks, requests) chunks found in L1, for each clock the eviction thread may have."""
    l2: Floats
    """(clocks, requests) further chunks found in L2."""

    @property
    def rate(self) -> float:
        """The token hit rate, mean over the clocks."""
        return float((self.l1 + self.l2).sum(axis=1).mean() / self.asked.sum()) if self.asked.sum() else 0.0


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
    economics: Economics | None = None
    """What the operator knows of engine and prices, else the speeds that the engine showed."""
    engine_speed: EngineSpeed | None = None
    """Of the serving engine, fitted to its own metrics."""
    predicted: dict[ServerSetting, PredictedHits] = field(default_factory=dict)
    """What was predicted so far, so that no setting is run twice."""

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
    def window_chunks(self) -> Ints:
        """(requests,) whole chunks of each request of the window; empty without a log."""
        return np.zeros(0, np.int64) if self.log is None else self.log.chunks_per_request[self.in_window]

    @cached_property
    def shared_depths(self) -> Ints | None:
        """(requests,) leading chunks that each request of the window shares with any earlier one; ``None`` without a log."""
        return None if self.log is None else hits_per_request(self.log, self.log.unique_chunks)[self.in_window]

    @property
    def largest_request(self) -> int | None:
        """Most whole chunks of one request in the window; ``None`` without a log."""
        return int(self.window_chunks.max()) if len(self.window_chunks) else None

    @cached_property
    def clocks(self) -> Sequence[EvictionClock]:
        """When the server's eviction thread may wake: close to what was observed, else all that is possible."""
        observed = None if self.log is None else observed_clock(self.log, self.polls)
        if observed is None:
            return possible_clocks(CLOCKS)
        return clocks_near(observed, CLOCKS) if self.engine_speed is None else clocks_near(observed, CLOCKS, store_delay=0)

    @property
    def store_delay(self) -> StoreDelay:
        """How long after its lookup a request stores: while the engine computes; at once where none showed its speed."""
        if self.engine_speed is None or self.log is None:
            return AT_ONCE
        # With a sampled log each chunk stands for several.
        tokens = self.log.chunk_size / self.log.sampling_rate
        return StoreDelay(self.engine_speed.per_request, self.engine_speed.per_computed_token * tokens)

    # ---- sizes and speeds ----

    @cached_property
    def chunk_bytes(self) -> float | None:
        """L1 bytes that one chunk of the log takes: measured, else as the log states; ``None`` when neither is known.

        Each chunk of a sampled log also stands for those that were not recorded.
        """
        if self.metrics.kv_bytes_per_token and self.config.chunk_size:
            stands_for = 1.0 if self.log is None else 1 / self.log.sampling_rate
            return self.metrics.kv_bytes_per_token * self.config.chunk_size * stands_for
        return float(self.log.chunk_bytes) if self.log is not None and self.log.chunk_bytes else None

    @property
    def capacity_chunks(self) -> float | None:
        """L1 capacity in chunks."""
        if self.chunk_bytes is None or self.config.max_size_mb is None:
            return None
        return self.config.max_size_mb * MB / self.chunk_bytes

    @property
    def kv(self) -> KvSize | None:
        """Measured KV bytes of one token."""
        return kv_size(self.metrics, self.log)

    @property
    def l2_load_gb_per_second(self) -> float | None:
        """Speed of loads from L2, as the operator states, else as LMCache measured; ``None`` when neither is known."""
        stated = self.economics.l2_load_gb_per_second if self.economics else None
        return stated or self.metrics.l2_load_gb_per_second

    @property
    def break_even_gb_per_second(self) -> float | None:
        """Load speed below which a hit takes longer than computing it; ``None`` without economics or KV bytes."""
        if self.economics is None or self.kv is None:
            return None
        return break_even_bandwidth(self.kv, self.economics.prefill) / GB

    @cached_property
    def l2_weight(self) -> float:
        """Time a hit of L2 saves, as a share of what one of L1 saves: 1 while that is not known, below 0 where it costs time."""
        economics, l2 = self.economics, self.l2_load_gb_per_second
        if economics is None or l2 is None:
            return 1.0
        of_l1, of_l2 = (
            seconds_saved_per_token(economics.prefill, self.kv, load) for load in (economics.l1_load_gb_per_second, l2)
        )
        return of_l2 / of_l1 if of_l1 > 0 else 1.0
