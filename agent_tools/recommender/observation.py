"""The recommender's input: one cache in one window, with its access log if there is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from agent_tools.deployments.server.versions import release_of
from agent_tools.models import MB, Bounds, CacheConfig, CacheMetrics, EvictionPolicy, Health, Rung, Support, SupportLevel, Window
from agent_tools.models.config import SKIP_L1
from agent_tools.models.cost import Economics, KvSize
from agent_tools.models.engine import EngineMetrics, EngineSpeed
from agent_tools.plain import points
from agent_tools.prediction.cost import GB, break_even_bandwidth, kv_size, seconds_saved_per_token
from agent_tools.prediction.engine_cache import CountedEngine, EngineCache, counted_engine_cache
from agent_tools.prediction.engine_split import Admission
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
from agent_tools.serving.attribution import other_span
from agent_tools.workload.access_log import AccessLog

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CLOCKS_FOR_90_PERCENT = 19
"""Eviction clocks per prediction. 19 is the smallest number that gives a 90 % interval without assuming a distribution."""

SERVES_ITSELF = 0.02
"""Largest share of prompt tokens from the engine's own prefix cache that is taken for none, if its size is unknown."""
OWN_CACHE_OFF = 0.03
"""Largest distance between the modelled and the counted share of the engine's own cache at which the model is believed."""


@dataclass(frozen=True, eq=False)
class PredictedHits:
    """The hits that the model predicts for the window's requests under one setting."""

    asked: Floats
    """(requests,) requested chunks."""
    l1: Floats
    """(clocks, requests) chunks found in L1, for each possible clock of the eviction thread."""
    l2: Floats
    """(clocks, requests) further chunks found in L2."""
    own: Floats | float = 0.0
    """(requests,) leading chunks that the engine's own prefix cache holds: hits on them save nothing."""
    dropped: Floats = field(default_factory=lambda: np.zeros(0))
    """(requests,) chunks whose store fails, mean over the clocks; empty if the model was not asked for them."""

    @property
    def rate(self) -> float:
        """Return the token hit rate in [0, 1], as the mean over the clocks."""
        return self._share(self.l1 + self.l2)

    @property
    def saved_l1(self) -> Floats:
        """Return the chunks of `l1` that the engine's own cache does not hold, shape (clocks, requests)."""
        return np.maximum(self.l1 - self.own, 0.0)

    @property
    def saved_l2(self) -> Floats:
        """Return the chunks of `l2` that the engine's own cache does not hold, shape (clocks, requests)."""
        return np.maximum(self.l1 + self.l2 - self.own, 0.0) - self.saved_l1

    @property
    def served(self) -> Floats:
        """Return the chunks found in L1 or L2, shape (requests,), as the mean over the clocks."""
        return np.asarray((self.l1 + self.l2).mean(axis=0))

    @property
    def saved(self) -> Floats:
        """Return the chunks of `served` that the engine's own cache does not hold, shape (requests,)."""
        return np.asarray((self.saved_l1 + self.saved_l2).mean(axis=0))

    @property
    def saved_rate(self) -> float:
        """Return the share of the requested tokens that LMCache saves, in [0, 1], as the mean over the clocks."""
        return self._share(self.saved_l1 + self.saved_l2)

    @property
    def saved_l1_rate(self) -> float:
        """Return the part of `saved_rate` that L1 serves, as the mean over the clocks."""
        return self._share(self.saved_l1)

    def _share(self, chunks: Floats) -> float:
        return float(chunks.sum(axis=1).mean() / self.asked.sum()) if self.asked.sum() else 0.0


@dataclass(frozen=True, eq=False)
class Observation:
    """A cache in one window."""

    cache: str
    metrics: CacheMetrics
    config: CacheConfig
    support: Mapping[str, Support]
    bounds: Bounds
    health: Health
    log: AccessLog | None
    """All lookups since L1 was last empty; lookups before the window warm the model. ``None`` without a log."""
    no_log: str | None = None
    """Why there is no log, if the cache has one and did not give it."""
    polls: Sequence[Poll] = ()
    """Readings of the server's eviction tick counter. They show when the server evicts."""
    economics: Economics | None = None
    """Engine speeds and prices from the operator's settings, else the speeds that the engine's metrics show."""
    engine_speed: EngineSpeed | None = None
    """The serving engine's speed, fitted to its own metrics."""
    own_cache_tokens: int | Sequence[int] | None = None
    """Size of the engine's own prefix cache, tokens, as the operator states it; one for each of several engines. ``None``: as the
    engine reports it."""
    admissions: Sequence[Admission] = ()
    """Prompt tokens that each of several engines admitted between readings."""
    age_seconds: float | None = None
    """How long the cache process has run; ``None`` if that is unknown."""
    recent: CacheMetrics | None = None
    """The figures of the last minute, where the window is longer than that and earlier readings cover the minute."""
    version: str | None = None
    """The version of LMCache that answered."""
    predicted: dict[ServerSetting, PredictedHits] = field(default_factory=dict)
    """Predictions made so far, so that the model runs each setting only once."""

    @cached_property
    def in_window(self) -> npt.NDArray[np.bool_]:
        """Return a mask of shape (requests,): the log's lookups that fall into the window."""
        if self.log is None:
            return np.zeros(0, dtype=np.bool_)
        start, end = self.metrics.window.start.timestamp(), self.metrics.window.end.timestamp()
        return (self.log.timestamps >= start) & (self.log.timestamps <= end)

    def during(self, window: Window) -> "Observation":
        """Return the same cache and log in another window, with the counters of this one: for the model only.

        The engine's own cache is as these counters show it.
        """
        other = replace(self, metrics=self.metrics.model_copy(update={"window": window}), predicted={})
        other.__dict__["own_cache"] = self.own_cache
        return other

    @property
    def never_evicts(self) -> bool:
        """Return whether L1 has policy noop."""
        return self.config.eviction_policy is EvictionPolicy.NOOP

    @property
    def in_process(self) -> bool:
        """Return whether LMCache runs inside an engine: it then has no watermark. Sizes are those of one worker."""
        support = self.support.get("eviction_watermark")
        return self.config.eviction_watermark is None and support is not None and support.level is SupportLevel.UNSUPPORTED

    @property
    def workers(self) -> int:
        """Return how many workers have an L1 of the configured size each; 1 for a server."""
        size, total = self.config.max_size_mb, self.metrics.total_size_mb
        return max(round(total / size), 1) if self.in_process and size and total else 1

    @property
    def l1_is_buffer(self) -> bool:
        """Return whether L1 only passes chunks on: each one moves to L2 when stored, and leaves L1 again after a load.

        Such a design is healthy. LMCache counts each of these removals as an eviction.
        """
        config = self.config
        moves_on = config.l2_store_policy == SKIP_L1 and config.l2_prefetch_policy != "retain"
        return bool(config.l2_adapters) and moves_on

    @property
    def loads_modules(self) -> bool:
        """Return whether the server can load our module, or may: LMCache before 0.5.6 cannot."""
        return self.version is None or release_of(self.version).changes_live

    @property
    def lookups(self) -> int | None:
        """Return the lookups of the window: as counted, else as logged. ``None`` if LMCache does neither."""
        counted = self.metrics.total_requests
        return int(self.in_window.sum()) if counted is None and self.log is not None else counted

    @property
    def rung(self) -> Rung:
        """Return the strongest kind of evidence available."""
        if self.in_window.any():
            return Rung.ACCESS_LOG
        return Rung.HISTOGRAMS if self.metrics.evicted_followed else Rung.COUNTERS

    @cached_property
    def curve(self) -> HitRateCurve | None:
        """Return the hit rate of the window's requests at every capacity, or ``None`` without a log."""
        if self.log is None or self.rung is not Rung.ACCESS_LOG:
            return None
        return hit_rate_curve(self.log, counted=self.in_window)

    @cached_property
    def window_chunks(self) -> Ints:
        """Return the whole chunks of each of the window's requests, shape (requests,). Empty without a log."""
        return np.zeros(0, np.int64) if self.log is None else self.log.chunks_per_request[self.in_window]

    @cached_property
    def shared_depths(self) -> Ints | None:
        """Return, for each of the window's requests, how many leading chunks it shares with any earlier request.

        The shape is (requests,). ``None`` without a log.
        """
        return None if self.log is None else hits_per_request(self.log, self.log.unique_chunks)[self.in_window]

    @property
    def largest_request(self) -> int | None:
        """Return the whole chunks of the window's largest request, or ``None`` without a log."""
        return int(self.window_chunks.max()) if len(self.window_chunks) else None

    @cached_property
    def clocks(self) -> Sequence[EvictionClock]:
        """Return the clocks that the server's eviction thread may have: clocks near the observed one, else all possible ones."""
        observed = None if self.log is None else observed_clock(self.log, self.polls)
        if observed is None:
            return possible_clocks(CLOCKS_FOR_90_PERCENT)
        return (
            clocks_near(observed, CLOCKS_FOR_90_PERCENT)
            if self.engine_speed is None
            else clocks_near(observed, CLOCKS_FOR_90_PERCENT, store_delay=0)
        )

    @property
    def store_delay(self) -> StoreDelay:
        """Return how long after its lookup a request stores its chunks.

        The request stores while the engine computes. If the engine's speed is unknown, it stores at once.
        """
        if self.engine_speed is None or self.log is None:
            return AT_ONCE
        # In a sampled log, each chunk stands for several chunks.
        tokens = self.log.chunk_size / self.log.sampling_rate
        return StoreDelay(self.engine_speed.per_request, self.engine_speed.per_computed_token * tokens)

    # ---- the engine's own prefix cache ----

    @property
    def own_cache_sizes(self) -> tuple[int, ...] | None:
        """Return how many tokens the own prefix cache of each engine holds; 0 if it is off or serves nothing.

        ``None`` if the size of one is unknown.
        """
        engine, stated = self.metrics.engine, self.own_cache_tokens
        if stated is not None and not isinstance(stated, int):
            return tuple(stated)
        if engine is None:
            return None if stated is None else (stated,)
        sizes = [_size_of(one) if stated is None else stated for one in engine.engines or (engine,)]
        return None if None in sizes else tuple(size for size in sizes if size is not None)

    @property
    def own_cache_size(self) -> int | None:
        """Return how many tokens the engines' own prefix caches hold together; 0 if they are off, ``None`` if unknown."""
        return None if self.own_cache_sizes is None else sum(self.own_cache_sizes)

    @cached_property
    def own_cache(self) -> EngineCache | None:
        """Return what the engine's own prefix cache serves of the log; ``None`` without a log, or if it is off or unknown."""
        if self.log is None or not self.own_cache_size or self.own_cache_sizes is None:
            return None
        engine = self.metrics.engine
        counted = () if engine is None or self.other_figures is not None else engine.engines or (engine,)
        engines = [CountedEngine(size) for size in self.own_cache_sizes]
        if len(counted) == len(engines):
            engines = [
                CountedEngine(size, one.prompt_tokens, one.own_cache_share if one.prompt_tokens else None)
                for size, one in zip(self.own_cache_sizes, counted, strict=True)
            ]
        return counted_engine_cache(self.log, engines, self.in_window, self.admissions)

    @property
    def own_hits(self) -> Floats | float:
        """Return the leading chunks of the window's requests that the engine's own cache holds, shape (requests,); 0 if none."""
        return 0.0 if self.own_cache is None else self.own_cache.hits[self.in_window].astype(np.float64)

    @property
    def other_figures(self) -> str | None:
        """Return why the engine's figures cannot be set against the cache's; ``None`` if they can, or if no engine is read."""
        engine = self.metrics.engine
        return None if engine is None else engine.doubt or other_span(engine, self.metrics.window.seconds)

    @property
    def savings_unknown(self) -> str | None:
        """Return why nothing says which hits save the engine anything.

        ``None`` if the engine's own cache is off, is not read at all, or is explained by the model.
        """
        engine = self.metrics.engine
        if engine is None or (self.own_cache_size == 0 and not engine.doubt):
            return None
        if self.other_figures is not None:
            return self.other_figures
        if self.own_cache_size is None:
            return "the engine's metrics do not give the size of its own cache: state engine_cache_tokens in caches.toml"
        if self.own_cache is None or self.log is None:
            return "there is no access log to model the engine's own cache on"
        if self.own_cache.error > OWN_CACHE_OFF:
            return (
                f"the model does not explain which part the engine's own cache serves (off by {points(self.own_cache.error)}):"
                " observe for longer, or name all engines of this cache in caches.toml"
            )
        return None

    @property
    def savings_known(self) -> bool:
        """Return whether it is known which hits save the engine anything; see `savings_unknown`."""
        return self.savings_unknown is None

    @property
    def saved_rate(self) -> float | None:
        """Return the measured share of the requested tokens that LMCache saved; the hit rate if no cache is known before it.

        ``None`` if the engine is not read, though the size of its cache is stated, or if it does not tell.
        """
        engine, requested = self.metrics.engine, self.metrics.tokens.requested
        if self.own_cache is None:
            return self.metrics.tokens.hit_rate
        if engine is None or not requested or engine.lmcache_tokens is None or self.other_figures is not None:
            return None
        return min(engine.lmcache_tokens / requested, 1.0)

    @property
    def ceiling(self) -> float | None:
        """Return the share of the requested tokens that an unbounded L1 would save; ``None`` without a log."""
        if self.curve is None or self.shared_depths is None:
            return None
        if self.own_cache is None:
            return self.curve.ceiling()
        return float(np.maximum(self.shared_depths - self.own_hits, 0).sum() / max(int(self.window_chunks.sum()), 1))

    # ---- sizes and speeds ----

    @cached_property
    def chunk_bytes(self) -> float | None:
        """Return the L1 bytes of one chunk of the log, or ``None``.

        They are those of an average chunk if the log knows what chunks are made of, else the measured size, else the size in the
        log. A chunk of a sampled log also stands for chunks that were not recorded. Of in-process LMCache they are those on one
        worker, like its sizes: the measured ones are of all ranks together.
        """
        if self.in_process and self.log is not None and self.log.chunk_bytes:
            return float(self.log.chunk_bytes)
        if self.log is not None and self.log.layouts and self.log.chunk_bytes:
            return self.log.chunk_bytes / self.log.sampling_rate
        if self.metrics.kv_bytes_per_token and self.config.chunk_size:
            stands_for = 1.0 if self.log is None else 1 / self.log.sampling_rate
            return self.metrics.kv_bytes_per_token * self.config.chunk_size * stands_for
        return float(self.log.chunk_bytes) if self.log is not None and self.log.chunk_bytes else None

    @property
    def capacity_chunks(self) -> float | None:
        """Return L1's capacity in chunks, or ``None`` if it is unknown."""
        if self.chunk_bytes is None or self.config.max_size_mb is None:
            return None
        return self.config.max_size_mb * MB / self.chunk_bytes

    @property
    def kv(self) -> KvSize | None:
        """Return the measured KV bytes of one token, or ``None`` if they are unknown."""
        return kv_size(self.metrics, self.log)

    @property
    def l2_load_gb_per_second(self) -> float | None:
        """Return the speed of loads from L2: the operator's figure, else LMCache's measurement, else ``None``."""
        stated = self.economics.l2_load_gb_per_second if self.economics else None
        return stated or self.metrics.l2_load_gb_per_second

    @property
    def break_even_gb_per_second(self) -> float | None:
        """Return the load speed below which loading a hit takes longer than computing it.

        ``None`` without economics or KV bytes.
        """
        if self.economics is None or self.kv is None:
            return None
        return break_even_bandwidth(self.kv, self.economics.prefill) / GB

    @cached_property
    def l2_weight(self) -> float:
        """Return the time that a hit in L2 saves, relative to a hit in L1.

        The value is 1 if the speeds are unknown, and negative if loading from L2 takes longer than computing.
        """
        economics, l2 = self.economics, self.l2_load_gb_per_second
        if economics is None or l2 is None:
            return 1.0
        of_l1, of_l2 = (
            seconds_saved_per_token(economics.prefill, self.kv, load) for load in (economics.l1_load_gb_per_second, l2)
        )
        return of_l2 / of_l1 if of_l1 > 0 else 1.0


def _size_of(engine: EngineMetrics) -> int | None:
    """Return the tokens that an engine's own prefix cache holds; 0 if it is off or serves nothing, ``None`` if unknown."""
    if engine.own_cache_size_tokens is not None:
        return engine.own_cache_size_tokens
    return 0 if engine.own_cache_share is not None and engine.own_cache_share <= SERVES_ITSELF else None
