"""What a cache did over a window of time, and what state it is in.

Figures are differences of LMCache's own counters over the window. A figure that LMCache does not give is ``None``, and
`CacheMetrics.unavailable` says why.
"""

from datetime import datetime, timezone
from typing import Annotated

from pydantic import AwareDatetime, Field, model_validator

from .config import CacheConfig, CacheStatus, Frozen, Line
from .engine import EngineMetrics

Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Window(Frozen):
    """The span of time that figures cover."""

    start: AwareDatetime
    """First instant, UTC."""
    end: AwareDatetime
    """Last instant, UTC."""
    lifetime: bool = False
    """True when the figures are totals since the cache process started, because there was only one reading of it."""
    counters_reset: bool = False
    """True when the cache process restarted inside the asked window; the figures then start at the restart."""
    simulated: bool = False
    """True when a model made the figures, and no LMCache."""

    @model_validator(mode="after")
    def _in_order(self) -> "Window":
        if self.end < self.start:
            msg = f"a window cannot end ({self.end.isoformat()}) before it starts ({self.start.isoformat()})"
            raise ValueError(msg)
        return self

    @property
    def seconds(self) -> float:
        """Length of the window in seconds."""
        return (self.end - self.start).total_seconds()


class TokenCounts(Frozen):
    """Prompt tokens looked up, in whole chunks, and how many of them each tier served."""

    requested: Count = 0
    """Chunk-aligned tokens asked for (``lmcache_mp_lookup_requested_tokens_total``)."""
    hit_l1: Count = 0
    """Tokens of leading chunks found in L1."""
    hit_l2: Count = 0
    """Tokens of leading chunks found in L2."""

    @property
    def hit(self) -> int:
        """Tokens served from any tier."""
        return self.hit_l1 + self.hit_l2

    @property
    def hit_rate(self) -> float | None:
        """Share of the requested tokens that were served, in [0, 1]; ``None`` when nothing was requested."""
        return self.hit / self.requested if self.requested else None


class Spread(Frozen):
    """How one figure differs between the members of a cache that is made of several."""

    worst: float
    """Of all members that have the figure."""
    worst_member: str
    """Which member."""
    median: float
    """Of all members that have the figure."""
    best: float
    """Of all members that have the figure."""
    best_member: str
    """Which member."""


class CacheMetrics(Frozen):
    """Counters and sizes of one cache over one window. Sizes in MB = 2**20 bytes, latencies in milliseconds."""

    status: CacheStatus
    """State of the cache as a whole."""
    enabled: bool
    """Whether it serves requests."""
    window: Window
    """The span of time that the counts cover."""
    total_size_mb: float | None = None
    """L1 capacity now, MB."""
    used_size_mb: float | None = None
    """L1 bytes in use now, MB."""
    available_size_mb: float | None = None
    """L1 capacity less what is used, MB."""
    utilization_percent: float | None = None
    """Used share of L1, percent; can pass 100 while an L1 arena is being drained."""
    total_requests: Count | None = None
    """Lookups finished in the window."""
    cache_hits: Count | None = None
    """Lookups that found at least one chunk."""
    cache_misses: Count | None = None
    """Lookups that found nothing."""
    hit_rate_percent: Percent | None = None
    """Token hit rate: tokens served from L1 or L2 / chunk-aligned tokens requested, percent."""
    tokens_cached: Count | None = None
    """Tokens resident in L1 now."""
    tokens_served: Count | None = None
    """Tokens served from cache in the window."""
    tokens_computed: Count | None = None
    """Chunk-aligned tokens that were not cached and had to be computed in the window."""
    avg_latency_ms: float | None = None
    """Mean lookup latency."""
    cache_hit_latency_ms: float | None = None
    """Mean latency of lookups that hit."""
    cache_miss_latency_ms: float | None = None
    """Mean latency of lookups that missed."""
    memory_saved_mb: float | None = None
    """KV that requests took from the cache instead of computing it again: tokens_served x KV bytes per token, MB."""
    memory_savings_percent: Percent | None = None
    """memory_saved_mb as a share of the KV of all requested tokens, percent."""
    tokens: TokenCounts = TokenCounts()
    """Requested and served tokens by tier."""
    by_model: dict[str, TokenCounts] = {}
    """The same for each model name."""
    by_tenant: dict[str, TokenCounts] = {}
    """The same for each tenant (cache salt; empty string = no salt)."""
    failed_stores: Count | None = None
    """Chunks that were not stored because L1 had no room (``l1_allocation_failure_chunks``); clients are not told."""
    evictions: Count | None = None
    """Chunks removed from L1 by any cause: eviction, clear, delete, temporary L2 loads dropped after use."""
    stored_chunks: Count | None = None
    """Chunks written into L1."""
    resident_chunks: Count | None = None
    """Chunks in L1 now."""
    short_prompts: Count | None = None
    """Lookups of prompts shorter than one chunk, which can never be cached."""
    dropped_events: Count | None = None
    """Events LMCache dropped before counting them; above 0, every other counter is too low."""
    evicted_followed: Count | None = None
    """Evicted chunks whose fate LMCache followed: a sample of 1 % unless started with a higher ``--metrics-sample-rate``."""
    evicted_needed: Count | None = None
    """Of these, asked for again within two minutes of their eviction (``l1_chunk_evict_reuse_gap``)."""
    l2_loads_failed: Count | None = None
    """Chunks found in L2 that could not be loaded because L1 had no room (``l2_prefetch_failure``, ``l1_oom``)."""
    l2_loads_lost: Count | None = None
    """Chunks that L2 said it has and then did not deliver (``l2_prefetch_failure``, ``not_found``)."""
    l2_evictions: Count | None = None
    """Chunks that L2 evicted (``l2_evicted_objects_chunks``)."""
    l2_load_gb_per_second: Annotated[float, Field(gt=0)] | None = None
    """Mean speed of loads from L2 into L1 (``l2_load_throughput``), GB/s (1e9)."""
    l2_used_mb: Annotated[float, Field(ge=0)] | None = None
    """Bytes in L2 as LMCache accounts them, MB: what was there before the process started is not counted."""
    l2_size_mb: Annotated[float, Field(gt=0)] | None = None
    """Declared capacity of L2, MB; ``None`` when an adapter has none."""
    locked_chunks: Count | None = None
    """Chunks in L1 that requests hold locked now; they cannot be evicted."""
    kv_bytes_per_token: float | None = None
    """KV bytes of one token: L1 bytes used / tokens resident."""
    engine: EngineMetrics | None = None
    """What the serving engine in front of the cache measured; only where the operator's directory names one."""
    spread: dict[str, Spread] = {}
    """For a cache of several members (workers of an engine, servers of a fleet): how figures differ between them, by name."""
    unavailable: dict[str, str] = {}
    """For each figure that is ``None``: why."""

    @model_validator(mode="after")
    def _plausible(self) -> "CacheMetrics":
        if self.tokens.hit > self.tokens.requested:
            msg = f"{self.tokens.hit} tokens served of {self.tokens.requested} requested: more hits than requests"
            raise ValueError(msg)
        return self


class CacheEntry(Frozen):
    """One stored chunk."""

    entry_id: str
    """LMCache's object key, unique in one cache."""
    prefix_hash: str
    """Chained hash of the prompt up to and including this chunk, hexadecimal."""
    token_count: Count | None = None
    """Tokens in the chunk."""
    size_mb: Annotated[float, Field(ge=0)] | None = None
    """Bytes stored, MB."""
    hit_count: Count | None = None
    """How often it was read."""
    created_at: AwareDatetime | None = None
    """When it was stored, UTC."""
    last_accessed: AwareDatetime | None = None
    """When it was last read, UTC."""
    placements: tuple[str, ...] = ()
    """In a fleet: where it is, as ``server (tier)``."""


class TenantUsage(Frozen):
    """What one tenant (cache salt) occupies, as LMCache accounts it, MB; ``None`` where it keeps no account."""

    l1_mb: Annotated[float, Field(ge=0)] | None = None
    """In L1, MB."""
    l2_mb: Annotated[float, Field(ge=0)] | None = None
    """In L2, MB."""
    quota_mb: Annotated[float, Field(ge=0)] | None = None
    """Its L2 quota; ``None`` when it has none."""


class Tenant(Frozen):
    """One tenant (cache salt) of a cache."""

    tokens: TokenCounts
    """What it asked for in the window, and what it was served."""
    usage: TenantUsage
    """What it occupies now, and its quota."""


class Tenants(Frozen):
    """All tenants (cache salts) of a cache: those with traffic, with entries, or with a quota."""

    window: Window
    """The span of time that the token counts cover."""
    tenants: dict[str, Tenant]
    """By cache salt; the empty one is that of requests without."""


class Health(Frozen):
    """Whether the cache works, read from ``/status`` thread by thread; ``/healthcheck`` stays 'healthy' when eviction is dead."""

    healthy: bool
    """True when every part works."""
    problems: tuple[Line, ...] = ()
    """One sentence for each thing that is broken."""
    discounted: tuple[Line, ...] = ()
    """Alarms LMCache raises that are known to be false, and why they do not count."""


class LMCacheStatus(Frozen):
    """One cache now: what it is, how it is set, how it does."""

    timestamp: AwareDatetime
    """When it was read, UTC."""
    instance_id: str | None
    """LMCache's own id of the process."""
    metrics: CacheMetrics
    """Its figures since the process started."""
    config: CacheConfig
    """The settings in force."""
    lmcache_version: str | None
    """LMCache's version, e.g. ``0.5.6``."""
    backend: str
    """Which deployment answered: ``lmcache server``, ``embedded`` ..."""
    health: Health
    """What is broken, if anything."""
    top_entries: tuple[CacheEntry, ...] | None = None
    """Most used entries; ``None`` where the deployment cannot list them (`notes` says why)."""
    symptoms: tuple[str, ...] = ()
    """Codes of what looks wrong in this window; `recommend` explains them."""
    notes: dict[str, str] = {}
    """For each part that is ``None``: why."""


def utc(timestamp: float) -> datetime:
    """A Unix time in seconds as a timezone-aware UTC datetime."""
    return datetime.fromtimestamp(timestamp, tz=timezone.utc)


def now() -> datetime:
    """This instant, UTC."""
    return datetime.now(tz=timezone.utc)
