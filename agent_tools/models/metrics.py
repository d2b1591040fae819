"""Figures of a cache over a window of time, and its state.

Figures are differences of LMCache's own counters over the window. A figure that LMCache does not report is ``None``, and
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
    """True if the figures are totals since the cache process started, because there was only one reading."""
    counters_reset: bool = False
    """True if the cache process restarted inside the requested window. The figures then start at the restart."""
    since_change: bool = False
    """True if the window starts at the last change of settings: no window spans a change, whoever made it."""
    simulated: bool = False
    """True if a model produced the figures instead of a real LMCache."""

    @model_validator(mode="after")
    def _in_order(self) -> "Window":
        if self.end < self.start:
            msg = f"a window cannot end ({self.end.isoformat()}) before it starts ({self.start.isoformat()})"
            raise ValueError(msg)
        return self

    @property
    def seconds(self) -> float:
        """Return the length of the window in seconds."""
        return (self.end - self.start).total_seconds()

    @property
    def span(self) -> str:
        """Return the length of the window in words, and where it starts."""
        since = ", all that was read since the settings changed" if self.since_change else ""
        since = " since the cache started" if self.lifetime else since
        return f"{self.seconds:.0f} s{since}" + (", the counters were reset in it" if self.counters_reset else "")


class TokenCounts(Frozen):
    """Prompt tokens looked up, in whole chunks, and how many of them each tier served."""

    requested: Count = 0
    """Chunk-aligned tokens requested (``lmcache_mp_lookup_requested_tokens_total``)."""
    hit_l1: Count = 0
    """Tokens of leading chunks found in L1."""
    hit_l2: Count = 0
    """Tokens of leading chunks found in L2."""

    @property
    def hit(self) -> int:
        """Return the number of tokens served from any tier."""
        return self.hit_l1 + self.hit_l2

    @property
    def hit_rate(self) -> float | None:
        """Return the share of the requested tokens that were served, in [0, 1]; ``None`` if nothing was requested."""
        return self.hit / self.requested if self.requested else None


class MoreNames(Frozen):
    """The models or tenants that a cache does not list by name, together. Clients choose these names."""

    count: Count = 0
    """How many there are since the cache process started."""
    tokens: TokenCounts = TokenCounts()
    """What they requested and were served."""


class Spread(Frozen):
    """How one figure differs between the members of a cache."""

    worst: float
    """Worst value of all members that have the figure."""
    worst_member: str
    """Name of the member with the worst value."""
    median: float
    """Median of all members that have the figure."""
    best: float
    """Best value of all members that have the figure."""
    best_member: str
    """Name of the member with the best value."""


class CacheMetrics(Frozen):
    """Counters and sizes of one cache over one window. Sizes are in MB = 2**20 bytes, latencies in milliseconds."""

    status: CacheStatus
    """State of the cache as a whole."""
    enabled: bool
    """Whether the cache serves requests."""
    window: Window
    """The span of time that the counts cover."""
    total_size_mb: float | None = None
    """L1 capacity now, MB."""
    used_size_mb: float | None = None
    """L1 bytes in use now, MB."""
    available_size_mb: float | None = None
    """Free L1 capacity now, MB."""
    utilization_percent: float | None = None
    """Used share of L1, percent. It can exceed 100 while an L1 arena is being drained."""
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
    """Tokens served from the cache in the window."""
    tokens_computed: Count | None = None
    """Chunk-aligned tokens that were not cached and had to be computed in the window."""
    avg_latency_ms: float | None = None
    """Mean lookup latency, milliseconds."""
    cache_hit_latency_ms: float | None = None
    """Mean latency of lookups that hit, milliseconds."""
    cache_miss_latency_ms: float | None = None
    """Mean latency of lookups that missed, milliseconds."""
    memory_saved_mb: float | None = None
    """KV that requests took from the cache instead of computing it again, MB: tokens_served x KV bytes per token."""
    memory_savings_percent: Percent | None = None
    """memory_saved_mb as a share of the KV of all requested tokens, percent."""
    tokens: TokenCounts = TokenCounts()
    """Requested and served tokens by tier."""
    by_model: dict[str, TokenCounts] = {}
    """Requested and served tokens of each model, by model name."""
    by_tenant: dict[str, TokenCounts] = {}
    """Requested and served tokens of each tenant, by cache salt. The empty string stands for requests without a salt."""
    more_models: MoreNames = MoreNames()
    """All models beyond the first 50, together."""
    more_tenants: MoreNames = MoreNames()
    """All tenants beyond the first 500, together."""
    failed_stores: Count | None = None
    """Chunks whose store LMCache dropped because L1 was full (``l1_allocation_failure_chunks``). Clients get no error."""
    evictions: Count | None = None
    """Chunks removed from L1 for any reason: eviction, clear, delete, or a temporary L2 load dropped after use."""
    stored_chunks: Count | None = None
    """Chunks written into L1."""
    resident_chunks: Count | None = None
    """Chunks in L1 now."""
    short_prompts: Count | None = None
    """Lookups of prompts shorter than one chunk. They can never be cached."""
    unregistered_lookups: Count | None = None
    """Lookups that ended at once because no engine registered that model with that world size (``lookup_early_exit``,
    ``no_gpu_context``). The engine computes such a request whole, and its tokens count nowhere."""
    layoutless_lookups: Count | None = None
    """Lookups that ended at once because the registered model has no layout (``no_group_layout_descs``)."""
    unregistered_models: dict[str, Count] = {}
    """The same lookups as `unregistered_lookups` by model, for models with at least one."""
    missing_models: tuple[str, ...] = ()
    """Models that engines asked for since the process started and that no engine has registered now."""
    dropped_events: Count | None = None
    """Events that LMCache dropped before counting them. If above 0, every other counter is too low."""
    evicted_followed: Count | None = None
    """Evicted chunks that LMCache tracked after their eviction: a 1 % sample unless started with a higher ``--metrics-sample-
    rate``."""
    evicted_needed: Count | None = None
    """Tracked evicted chunks that were requested again within two minutes of their eviction (``l1_chunk_evict_reuse_gap``)."""
    l2_loads_failed: Count | None = None
    """Chunks found in L2 that LMCache could not load because L1 was full (``l2_prefetch_failure``, ``l1_oom``)."""
    l2_loads_lost: Count | None = None
    """Chunks that L2 reported as present and then did not deliver (``l2_prefetch_failure``, ``not_found``)."""
    l2_evictions: Count | None = None
    """Chunks that L2 evicted (``l2_evicted_objects_chunks``)."""
    l2_load_gb_per_second: Annotated[float, Field(gt=0)] | None = None
    """Mean speed of loads from L2 into L1 (``l2_load_throughput``), GB/s (1e9 bytes)."""
    l2_used_mb: Annotated[float, Field(ge=0)] | None = None
    """Bytes in L2 as LMCache accounts for them, MB. Data from before the process started is not counted."""
    l2_size_mb: Annotated[float, Field(gt=0)] | None = None
    """Declared capacity of L2, MB; ``None`` if an adapter declares none."""
    locked_chunks: Count | None = None
    """Chunks in L1 that requests hold locked now. They cannot be evicted."""
    incomplete_chunks: Count | None = None
    """Chunks in L1 that lack the part of some KV rank or object group. No request can hit them."""
    kv_bytes_per_token: float | None = None
    """KV bytes of one token, over all ranks and object groups: L1 bytes used / tokens resident."""
    engine: EngineMetrics | None = None
    """Figures of the serving engine in front of the cache; only if caches.toml names an engine."""
    spread: dict[str, Spread] = {}
    """How figures differ between the members of the cache (workers of an engine, servers of a fleet), by name of the figure."""
    unavailable: dict[str, str] = {}
    """The reason for each figure that is ``None``, by name of the figure."""

    @model_validator(mode="after")
    def _plausible(self) -> "CacheMetrics":
        if self.tokens.hit > self.tokens.requested:
            msg = f"{self.tokens.hit} tokens served of {self.tokens.requested} requested: there cannot be more hits than requests"
            raise ValueError(msg)
        return self


class CacheEntry(Frozen):
    """One stored chunk."""

    entry_id: str
    """LMCache's object key, unique within one cache."""
    prefix_hash: str
    """Chained hash of the prompt up to and including this chunk, hexadecimal."""
    token_count: Count | None = None
    """Number of tokens in the chunk."""
    size_mb: Annotated[float, Field(ge=0)] | None = None
    """Size of the stored chunk, MB."""
    hit_count: Count | None = None
    """How often the chunk was read."""
    created_at: AwareDatetime | None = None
    """When the chunk was stored, UTC."""
    last_accessed: AwareDatetime | None = None
    """When the chunk was last read, UTC."""
    placements: tuple[str, ...] = ()
    """In a fleet: the servers that hold the chunk, each as ``server (tier)``."""


class TenantUsage(Frozen):
    """Memory that one tenant (cache salt) occupies, as LMCache accounts for it, MB; ``None`` if it keeps no account."""

    l1_mb: Annotated[float, Field(ge=0)] | None = None
    """Memory in L1, MB."""
    l2_mb: Annotated[float, Field(ge=0)] | None = None
    """Memory in L2, MB."""
    quota_mb: Annotated[float, Field(ge=0)] | None = None
    """The tenant's L2 quota, MB; ``None`` if it has no quota."""


class Prompts(Frozen):
    """The prompts of one tenant or model in a window, from the access log.

    A chunk's hash stands for its whole prefix. So the log shows where a prompt diverges from the earlier ones, and not whether
    what follows there was in them too.
    """

    count: Count
    """Prompts."""
    median_chunks: Annotated[float, Field(ge=0)]
    """Median length, whole chunks."""
    largest_chunks: Count
    """Length of the longest, whole chunks."""
    share: Annotated[float, Field(ge=0, le=1)]
    """Their share of all tokens that the window's prompts asked for."""
    again: Annotated[float, Field(ge=0, le=1)]
    """Share of their tokens that an earlier prompt had in front too: what an unbounded cache would serve."""
    diverge_at: Count | None
    """Where reuse ends: the chunk, counted from 1, in which most of them diverge from every earlier prompt. ``None`` if each
    was there before as a whole."""
    diverging: Annotated[float, Field(ge=0, le=1)]
    """Share of them that diverge in that chunk."""


class Tenant(Frozen):
    """One tenant (cache salt) of a cache, or one of its models."""

    tokens: TokenCounts
    """Tokens that were requested in the window, and tokens that were served."""
    prompts: Prompts | None = None
    """The prompts of the window; ``None`` without an access log, or if there were none."""
    usage: TenantUsage = TenantUsage()
    """The tenant's memory use now, and its quota. LMCache keeps no such account of models."""


class Tenants(Frozen):
    """All tenants (cache salts) of a cache that have traffic, entries or a quota."""

    window: Window
    """The span of time that the token counts cover."""
    tenants: dict[str, Tenant]
    """The tenants by cache salt. The empty string stands for requests without a salt."""
    more: MoreNames = MoreNames()
    """Tenants with traffic beyond the first 500, together."""
    models: dict[str, Tenant] = {}
    """The models with traffic in the window, by name; several world sizes of one model are told apart where the log does."""
    no_prompts: str | None = None
    """Why nothing is known of prompts; ``None`` if it is."""
    no_usage: str | None = None
    """Why nothing is known of quotas and of what tenants occupy; ``None`` if it is."""


class Health(Frozen):
    """Whether the cache works, read from ``/status`` thread by thread.

    LMCache's ``/healthcheck`` keeps answering 'healthy' after the eviction thread has died.
    """

    healthy: bool
    """True if every part works."""
    problems: tuple[Line, ...] = ()
    """One sentence for each broken part."""
    discounted: tuple[Line, ...] = ()
    """Alarms of LMCache that are known to be false, and why they are ignored."""


class LMCacheStatus(Frozen):
    """The present state of one cache: identity, settings, figures, health."""

    timestamp: AwareDatetime
    """When the status was read, UTC."""
    instance_id: str | None
    """LMCache's own id of the process; ``None`` if unknown."""
    metrics: CacheMetrics
    """The cache's figures since the process started."""
    config: CacheConfig
    """The settings in force."""
    lmcache_version: str | None
    """LMCache's version, e.g. ``0.5.6``; ``None`` if unknown."""
    backend: str
    """The deployment that answered: ``lmcache server``, ``embedded`` ..."""
    health: Health
    """The broken parts, if any."""
    top_entries: tuple[CacheEntry, ...] | None = None
    """The most used entries; ``None`` if the deployment cannot list them (`notes` says why)."""
    symptoms: tuple[str, ...] = ()
    """Codes of the symptoms in `symptoms_window`. `recommend` explains them."""
    symptoms_window: Window | None = None
    """The span of time that the symptoms are of: the last minutes, as far as they were observed, across no change of settings."""
    notes: dict[str, str] = {}
    """The reason for each part that is ``None``, by name of the part."""


def utc(timestamp: float) -> datetime:
    """Return a Unix time in seconds as a timezone-aware UTC datetime."""
    return datetime.fromtimestamp(timestamp, tz=timezone.utc)


def now() -> datetime:
    """Return the current time, UTC."""
    return datetime.now(tz=timezone.utc)
