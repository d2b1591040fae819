"""Two readings of a cache make a window: counters are subtracted, sizes are those of the later reading."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from statistics import median

from agent_tools.deployments.chunk_counts import in_chunks, saved_mb
from agent_tools.deployments.counters import Counters, Labels, TokenCounters, Unlisted
from agent_tools.models import MB, CacheMetrics, CacheStatus, Health, MoreNames, Spread, TokenCounts, Window
from agent_tools.models.engine import EngineMetrics
from agent_tools.models.metrics import utc
from agent_tools.serving.attribution import doubt
from agent_tools.serving.engine_reading import EngineReading
from agent_tools.serving.engine_window import engine_between

NO_ENGINE = "the operator's directory names no engine for this cache"
NO_COUNTERS = (
    "the server exports no lmcache_mp_* series: it was started with --otlp-endpoint, --disable-metrics or --disable-observability"
)
NO_REQUEST_HITS = "LMCache counts hit tokens, not requests that hit; see tokens_served"


@dataclass(frozen=True)
class Snapshot:
    """One reading of a cache: its counters since the process started, and its sizes now."""

    asked_at: float
    """Unix time at which the reading was asked for, seconds."""
    taken_at: float
    """Unix time at which it was there."""
    process_start: float | None
    """Unix time at which the cache process started; tells a restart from a quiet cache."""
    instance_id: str | None
    counters: Counters | None
    """``None`` when the cache exports no counters."""
    tokens: Mapping[Labels, TokenCounters]
    l1_used_bytes: int
    l1_total_bytes: int
    resident_objects: int
    """Objects in L1: chunks x ranks x object groups."""
    objects_per_chunk: float | None
    """How many objects make one chunk; ``None`` when that cannot be told yet."""
    chunk_size: int
    """Tokens per chunk."""
    health: Health
    objects_by_model: Mapping[str, float] = field(default_factory=dict)
    """Objects of a chunk of each model. If given, `counters` counts objects where its names say chunks."""
    no_counters: str = NO_COUNTERS
    """Why `counters` are missing, if they are."""
    incomplete_chunks: int | None = None
    """Chunks in L1 that lack the object of some rank or object group: they cannot be hit. ``None``: not counted."""
    bytes_by_model: Mapping[str, int] = field(default_factory=dict)
    """L1 bytes of a chunk of each model, as far as they are known."""
    unlisted: Unlisted = field(default_factory=Unlisted)
    """How many models and tenants `tokens` holds together, under ``None``."""
    locked_objects: int | None = None
    """Objects in L1 that requests hold locked."""
    l2_used_bytes: int | None = None
    """Bytes in L2 as accounted since the process started; ``None`` without an L2 that keeps account."""
    l2_total_bytes: int | None = None
    """Declared capacity of all of L2; ``None`` when an adapter has none."""
    uncounted: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(("cache_hits", "cache_misses"), NO_REQUEST_HITS))
    """Figures of `CacheMetrics` that this kind of cache does not count, and why: they are ``None``, not 0."""
    engine: EngineReading | None = None
    """Of the serving engine in front of the cache."""
    no_engine: str = NO_ENGINE
    """Why there is none."""
    simulated: bool = False
    """Whether a model made the figures, and no LMCache."""
    repeats: bool = False
    """Whether another member of the same cache counts the same requests: a further rank of one engine. It counts once in sums."""
    unregistered: Mapping[str, int] = field(default_factory=dict)
    """Lookups by model, since the process started, that ended because no engine registered the model with that world size."""
    registered_models: frozenset[str] | None = None
    """The models that engines have registered now; ``None`` where that is unknown."""
    version: str | None = None
    """The version of LMCache that answered; ``None`` if it was not read."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What a reader of this reading must know, by name of the part."""
    after_change: bool = False
    """Whether this is the first reading after a change of settings, so that a window cannot start earlier."""
    members: Mapping[str, "Snapshot"] = field(default_factory=dict)
    """For a cache of several processes: the readings that this one is the sum of, by name."""

    @property
    def server(self) -> str | None:
        """Identity of the server process, whichever address it was read from; ``None`` if the server exports no start time.

        It is made of the instance id and ``process_start_time_seconds``. For several processes it covers all of them.
        """
        if self.members:
            servers = [member.server for member in self.members.values()]
            return None if None in servers else ",".join(sorted(map(str, servers)))
        return None if self.process_start is None else f"{self.instance_id or ''}@{self.process_start!r}"

    @property
    def fill_seconds(self) -> float | None:
        """How long stores at the rate since the process started take to fill L1 once; ``None`` when nothing was stored."""
        if self.counters is None or self.process_start is None or not self.counters.stored_chunks or not self.resident_objects:
            return None
        counted = self.resident_objects / (1.0 if self.objects_by_model else self.objects_per_chunk or 1.0)
        stored_bytes = self.counters.stored_chunks * self.l1_used_bytes / counted
        return self.l1_total_bytes / stored_bytes * (self.taken_at - self.process_start) if stored_bytes else None

    def follows(self, earlier: "Snapshot") -> bool:
        """Whether this reading is of the same process as an earlier one, with no counter gone down.

        That of several processes follows when that of one of them does.
        """
        if self.members:
            return any(now.follows(earlier.members[name]) for name, now in self.members.items() if name in earlier.members)
        if self.process_start != earlier.process_start or self.counters is None or earlier.counters is None:
            return False
        return not _went_down(earlier.counters, self.counters) and not any(
            _went_down(counts, self.tokens.get(labels, TokenCounters())) for labels, counts in earlier.tokens.items()
        )


@dataclass(frozen=True)
class Served:
    """What a cache counted between two successive readings."""

    start: float
    """Unix time of the first reading, seconds."""
    end: float
    requested: int
    """Tokens that requests asked for, in whole chunks."""
    hit: int
    """Tokens that the cache served."""
    loaded: int | None = None
    """Tokens that the engine loaded from LMCache, as the engine counts; ``None`` if it was not read."""


BETTER = {"hit_rate_percent": 1, "utilization_percent": -1, "failed_stores": -1, "evictions": -1, "avg_latency_ms": -1}
"""Figures whose spread over members is told, and whether more is better (1) or worse (-1)."""
NO_LATENCY = "LMCache 0.5.6 times lookups only with --transport grpc"
NO_LATENCY_SPLIT = "LMCache does not time hits and misses apart"
NO_TRAFFIC = "no tokens were requested in the window"
NO_CHUNKS = "no chunk is resident, so bytes per token cannot be measured"
NO_L2_LOADS = "nothing was loaded from L2 in the window"
NO_L2_ACCOUNT = "there is no L2, or one that declares no capacity"
NOT_COUNTED = "only agent_tools.server_module counts chunks that lack objects; start the server with --server-module"
NO_HITS = (
    "LMCache counts objects (a chunk's part of one rank); until the first hit or with no worker registered, nothing tells how"
    " many make a chunk"
)


def metrics_between(before: Snapshot | None, after: Snapshot) -> CacheMetrics:
    """The figures of the window between two readings.

    With no earlier reading, or one of an earlier process, the window starts at the start of the process and is marked so.
    """
    metrics = _metrics(after, _window(before, after), *_counted(before, after))
    engine = None if after.engine is None else _engine(metrics, engine_between(before.engine if before else None, after.engine))
    no_engine = {} if engine else {"engine": after.no_engine}
    unserved = {"unregistered_models": _unregistered(before, after), "missing_models": tuple(sorted(_missing_models(after)))}
    found = {"engine": engine, "unavailable": metrics.unavailable | no_engine, **unserved}
    return metrics.model_copy(update={**found, "spread": _spread(before, after)} if after.members else found)


def _engine(metrics: CacheMetrics, engine: EngineMetrics) -> EngineMetrics:
    """Return the engines' figures, with the reason if they cannot be this cache's. A cache without counters tells nothing."""
    if metrics.total_requests is None:
        return engine
    asked, hit, seconds = metrics.tokens.requested, metrics.tokens.hit, metrics.window.seconds
    return engine.model_copy(update={"doubt": doubt(engine, asked=asked, hit=hit, seconds=seconds)})


def tokens_between(before: Snapshot, after: Snapshot) -> TokenCounts:
    """The tokens looked up between two readings."""
    return _sum(_counted(before, after)[1].values())


def _window(before: Snapshot | None, after: Snapshot) -> Window:
    if after.members:
        windows = [_window(then, now) for then, now in _pairs(before, after).values()]
        return Window(
            start=min(window.start for window in windows),
            end=max(window.end for window in windows),
            lifetime=any(window.lifetime for window in windows),
            counters_reset=any(window.counters_reset for window in windows),
            since_change=before is not None and before.after_change,
            simulated=any(window.simulated for window in windows),
        )
    start = _start(before, after)
    return Window(
        # The clock of this machine may have been set back between two readings, or be behind that of the cache's.
        start=utc(min(start.taken_at if start else after.process_start or after.taken_at, after.taken_at)),
        end=utc(after.taken_at),
        lifetime=start is None,
        counters_reset=before is not None and start is None and after.counters is not None,
        since_change=start is not None and start.after_change,
        simulated=after.simulated,
    )


def _counted(before: Snapshot | None, after: Snapshot) -> tuple[Counters | None, dict[Labels, TokenCounts]]:
    """What was counted between two readings, or since the process of the later one started."""
    if after.members:
        parts = [_counted(then, now) for then, now in _pairs(before, after).values() if not now.repeats]
        counted = [counters for counters, _ in parts if counters is not None]
        by_labels: dict[Labels, list[TokenCounts]] = {}
        for label, counts in (one for _, tokens in parts for one in tokens.items()):
            by_labels.setdefault(label, []).append(counts)
        return reduce(added, counted) if counted else None, {label: _sum(many) for label, many in by_labels.items()}
    if after.counters is None:
        return None, {}
    start = _start(before, after)
    counters = _difference(after.counters, start.counters if start and start.counters else Counters())
    tokens = _token_counts(after.tokens, start.tokens if start else {})
    return in_chunks(counters, after.objects_by_model, tokens), tokens


def _unregistered(before: Snapshot | None, after: Snapshot) -> dict[str, int]:
    """Return the lookups between two readings that ended because nobody registered their model, by model."""
    counts: dict[str, int] = {}
    for then, now in (_pairs(before, after) or {"": (before, after)}).values():
        start = _start(then, now)
        for model, lookups in now.unregistered.items():
            more = lookups - (start.unregistered.get(model, 0) if start else 0)
            if more > 0:
                counts[model] = counts.get(model, 0) + more
    return counts


def _missing_models(now: Snapshot) -> set[str]:
    """Return the models that engines have asked for since the process started and that no engine has registered now."""
    if now.members:
        return set().union(*map(_missing_models, now.members.values()))
    return set() if now.registered_models is None else now.unregistered.keys() - now.registered_models


def _start(before: Snapshot | None, after: Snapshot) -> Snapshot | None:
    return before if before is not None and after.follows(before) else None


def _pairs(before: Snapshot | None, after: Snapshot) -> dict[str, tuple[Snapshot | None, Snapshot]]:
    """For each member: its reading in the earlier one, if it is in that, and in the later one."""
    earlier = before.members if before is not None else {}
    return {name: (earlier.get(name), now) for name, now in after.members.items()}


def _spread(before: Snapshot | None, after: Snapshot) -> dict[str, Spread]:
    """How the main figures of a window differ between the members that have them."""
    members = {name: metrics_between(then, now) for name, (then, now) in _pairs(before, after).items()}
    values = {figure: {n: v for n, one in members.items() if (v := getattr(one, figure)) is not None} for figure in BETTER}
    return {figure: _spread_of(known, BETTER[figure]) for figure, known in values.items() if known}


def _spread_of(values: Mapping[str, float], better: int) -> Spread:
    ranked = sorted(values, key=lambda name: better * values[name])
    worst, best = ranked[0], ranked[-1]
    return Spread(worst=values[worst], worst_member=worst, median=median(values.values()), best=values[best], best_member=best)


def _metrics(now: Snapshot, window: Window, counters: Counters | None, tokens: dict[Labels, TokenCounts]) -> CacheMetrics:
    total = _sum(tokens.values())
    resident = _chunks(now, now.resident_objects)
    resident_tokens = None if resident is None else resident * now.chunk_size
    per_token = now.l1_used_bytes / resident_tokens if resident_tokens else None
    lookup_ms = 1e3 * counters.lookup_seconds / counters.lookup_calls if counters and counters.lookup_calls else None
    metrics = CacheMetrics(
        status=CacheStatus.ENABLED if now.health.healthy else CacheStatus.ERROR,
        enabled=True,
        window=window,
        total_size_mb=now.l1_total_bytes / MB,
        used_size_mb=now.l1_used_bytes / MB,
        available_size_mb=max(now.l1_total_bytes - now.l1_used_bytes, 0) / MB,
        utilization_percent=100 * now.l1_used_bytes / now.l1_total_bytes if now.l1_total_bytes else None,
        tokens_cached=resident_tokens,
        resident_chunks=resident,
        kv_bytes_per_token=per_token,
        avg_latency_ms=lookup_ms,
        locked_chunks=_chunks(now, now.locked_objects),
        incomplete_chunks=now.incomplete_chunks,
        l2_used_mb=None if now.l2_used_bytes is None else now.l2_used_bytes / MB,
        l2_size_mb=now.l2_total_bytes / MB if now.l2_total_bytes else None,
    )
    if counters is None:
        return metrics.model_copy(update={"unavailable": _why_missing(metrics, now.no_counters)})
    by_model, by_tenant, unlisted = _grouped(tokens, 0), _grouped(tokens, 1), _unlisted(now)
    total = _with_tiers(total, counters.l2_hit_tokens)
    counted = metrics.model_copy(
        update={
            "total_requests": counters.lookups,
            "cache_misses": counters.missed_lookups,
            "cache_hits": counters.lookups - counters.missed_lookups,
            "hit_rate_percent": None if total.hit_rate is None else 100 * total.hit_rate,
            "tokens_served": total.hit,
            "tokens_computed": total.requested - total.hit,
            "memory_saved_mb": saved_mb(now.bytes_by_model, now.chunk_size, by_model, per_token),
            "memory_savings_percent": None if total.hit_rate is None or per_token is None else 100 * total.hit_rate,
            "tokens": total,
            "by_model": _named(by_model),
            "by_tenant": _named(by_tenant),
            "more_models": MoreNames(count=unlisted.models, tokens=by_model.get(None, TokenCounts())),
            "more_tenants": MoreNames(count=unlisted.tenants, tokens=by_tenant.get(None, TokenCounts())),
            "failed_stores": counters.failed_stores,
            "evictions": counters.evictions,
            "stored_chunks": counters.stored_chunks,
            "short_prompts": counters.short_prompts,
            "unregistered_lookups": counters.unregistered,
            "layoutless_lookups": counters.no_layout,
            "dropped_events": counters.dropped_events,
            "evicted_followed": counters.evicted_followed,
            "evicted_needed": counters.evicted_needed,
            "l2_loads_failed": counters.l2_loads_failed,
            "l2_loads_lost": counters.l2_loads_lost,
            "l2_evictions": counters.l2_evictions,
            "l2_load_gb_per_second": counters.l2_load_speeds / counters.l2_loads if counters.l2_loads else None,
        }
    )
    known = counted.model_copy(update={name: None for name in now.uncounted if name in CacheMetrics.model_fields})
    return known.model_copy(update={"unavailable": {**_why_missing(known), **now.uncounted}})


def _chunks(now: Snapshot, objects: int | None) -> int | None:
    return round(objects / now.objects_per_chunk) if objects is not None and now.objects_per_chunk else None


def _with_tiers(total: TokenCounts, hit_l2: int) -> TokenCounts:
    """Return the same hits with `hit_l2` of them in L2, for a server that does not count hits by tier."""
    moved = min(hit_l2, total.hit_l1)
    return total.model_copy(update={"hit_l1": total.hit_l1 - moved, "hit_l2": total.hit_l2 + moved}) if moved else total


def _why_missing(metrics: CacheMetrics, no_counters: str | None = None) -> dict[str, str]:
    """For each figure that is ``None``: the reason, by name."""
    reasons = {
        "avg_latency_ms": NO_LATENCY,
        "cache_hit_latency_ms": NO_LATENCY_SPLIT,
        "cache_miss_latency_ms": NO_LATENCY_SPLIT,
        "hit_rate_percent": NO_TRAFFIC,
        "memory_savings_percent": NO_CHUNKS if metrics.tokens.requested else NO_TRAFFIC,
        "memory_saved_mb": NO_CHUNKS,
        "kv_bytes_per_token": NO_CHUNKS if metrics.tokens_cached is not None else NO_HITS,
        "tokens_cached": NO_HITS,
        "resident_chunks": NO_HITS,
        "l2_load_gb_per_second": NO_L2_LOADS,
        "l2_used_mb": NO_L2_ACCOUNT,
        "l2_size_mb": NO_L2_ACCOUNT,
        "locked_chunks": NO_HITS,
        "incomplete_chunks": NOT_COUNTED,
    }
    sized = {
        "kv_bytes_per_token",
        "tokens_cached",
        "resident_chunks",
        "l2_used_mb",
        "l2_size_mb",
        "locked_chunks",
        "incomplete_chunks",
    }
    missing = [name for name in type(metrics).model_fields if name != "engine" and getattr(metrics, name) is None]
    return {name: no_counters if no_counters and name not in sized else reasons.get(name, NO_COUNTERS) for name in missing}


_VALUES = {kind: operator.attrgetter(*(field.name for field in fields(kind))) for kind in (Counters, TokenCounters)}
"""All counts of one, in order; looked up once, since each observation compares hundreds of readings."""


def _went_down(before: Counters | TokenCounters, after: Counters | TokenCounters) -> bool:
    values = _VALUES[type(before)]
    return any(map(operator.lt, values(after), values(before)))


def _difference(after: Counters, before: Counters) -> Counters:
    return replace(after, **{f.name: getattr(after, f.name) - getattr(before, f.name) for f in fields(Counters)})


def added(one: Counters, other: Counters) -> Counters:
    """The sum of both."""
    return replace(one, **{f.name: getattr(one, f.name) + getattr(other, f.name) for f in fields(Counters)})


def _token_counts(after: Mapping[Labels, TokenCounters], before: Mapping[Labels, TokenCounters]) -> dict[Labels, TokenCounts]:
    counts = {}
    for labels, now in after.items():
        then = before.get(labels, TokenCounters())
        requested, hit_l1, hit_l2 = now.requested - then.requested, now.hit_l1 - then.hit_l1, now.hit_l2 - then.hit_l2
        if requested or hit_l1 or hit_l2:
            # LMCache adds to the requested and hit counters one after the other; a reading between the two must not fail.
            counts[labels] = TokenCounts(requested=max(requested, hit_l1 + hit_l2), hit_l1=hit_l1, hit_l2=hit_l2)
    return counts


def _grouped(tokens: Mapping[Labels, TokenCounts], part: int) -> dict[str | None, TokenCounts]:
    """Sum by model (0) or tenant (1), in one pass."""
    groups: dict[str | None, list[TokenCounts]] = {}
    for labels, counts in tokens.items():
        groups.setdefault(labels[part], []).append(counts)
    return {name: _sum(counts) for name, counts in groups.items()}


def _named(groups: Mapping[str | None, TokenCounts]) -> dict[str, TokenCounts]:
    """The groups that have a name, in order of their names."""
    return {name: groups[name] for name in sorted(name for name in groups if name is not None)}


def _unlisted(now: Snapshot) -> Unlisted:
    """Of several processes, the largest number: the same names may be in all of them."""
    each = [_unlisted(one) for one in now.members.values()] or [now.unlisted]
    return Unlisted(max(one.models for one in each), max(one.tenants for one in each))


def _sum(counts: Iterable[TokenCounts]) -> TokenCounts:
    many = list(counts)
    return TokenCounts(
        requested=sum(c.requested for c in many), hit_l1=sum(c.hit_l1 for c in many), hit_l2=sum(c.hit_l2 for c in many)
    )
