"""What is wrong with a cache: one rule per symptom, each with the figures it rests on.

To add a symptom: give it a code in `models.SymptomCode`, write its rule here, and list it in `RULES`.
"""

from collections.abc import Callable

from agent_tools.models import Evidence, Rung, Severity, Symptom, SymptomCode

from .observation import Observation

Rule = Callable[[Observation], Symptom | None]

ENOUGH_LOOKUPS = 20
"""Fewer lookups than this say nothing about a cache."""
NOTICEABLE = 0.02
"""Share of the requested tokens below which a loss is not worth a word."""
ENOUGH_FOLLOWED = 20
"""Fewer evicted chunks followed than this say nothing about the others."""
LARGE_TAILS = 0.25
"""Share of the prompt tokens in started chunks that is worth a word; 1-12 % is usual at 256 tokens."""
FAILING = 0.01
"""Share of the chunks to be stored whose loss is worth a word."""


def eviction_dead(seen: Observation) -> Symptom | None:
    """A thread of the server is dead; it has to be restarted whatever the figures say."""
    if seen.health.healthy:
        return None
    return Symptom(
        code=SymptomCode.EVICTION_DEAD,
        severity=Severity.CRITICAL,
        summary="; ".join(seen.health.problems),
        evidence=(
            Evidence(metric="parts of the server that are broken (/status)", value=len(seen.health.problems), unit="parts"),
        ),
    )


def counters_incomplete(seen: Observation) -> Symptom | None:
    """LMCache dropped events before counting them, or exports no counters at all."""
    dropped = seen.metrics.dropped_events
    if dropped == 0:
        return None
    why = seen.metrics.unavailable.get("total_requests", "LMCache dropped events, so all its counters are too low")
    evidence = () if dropped is None else (_figure("events dropped (event_bus_dropped_events)", dropped, "events"),)
    return Symptom(code=SymptomCode.COUNTERS_INCOMPLETE, severity=Severity.HIGH, summary=why, evidence=evidence)


def no_data(seen: Observation) -> Symptom | None:
    """Too few lookups to say anything."""
    lookups = seen.metrics.total_requests or 0
    if lookups >= ENOUGH_LOOKUPS and (seen.metrics.tokens.requested or seen.metrics.short_prompts):
        return None
    return Symptom(
        code=SymptomCode.NO_DATA,
        severity=Severity.INFO,
        summary=f"{lookups} lookups in {seen.metrics.window.seconds:.0f} s are too few to judge; {ENOUGH_LOOKUPS} is the least",
        evidence=(_figure("lookups (lookups_requests)", lookups, "lookups"),),
    )


def short_prompts(seen: Observation) -> Symptom | None:
    """Most prompts are shorter than one chunk and can never be cached; no memory helps."""
    lookups, short = seen.metrics.total_requests or 0, seen.metrics.short_prompts or 0
    if not lookups or short / lookups < 0.5:
        return None
    chunk = seen.config.chunk_size
    return Symptom(
        code=SymptomCode.SHORT_PROMPTS,
        severity=Severity.MEDIUM,
        summary=f"{short} of {lookups} prompts are shorter than one chunk ({chunk} tokens) and can never be cached;"
        " use smaller chunks",
        evidence=(_figure("prompts shorter than a chunk (lookup_early_exit, empty_chunk_hashes)", short, "lookups"),),
    )


def request_larger_than_l1(seen: Observation) -> Symptom | None:
    """A request whose chunks would not fit into an empty L1 is never stored."""
    if seen.largest_request is None or seen.capacity_chunks is None or seen.largest_request <= seen.capacity_chunks:
        return None
    return Symptom(
        code=SymptomCode.REQUEST_LARGER_THAN_L1,
        severity=Severity.HIGH,
        summary=f"the largest request has {seen.largest_request} chunks and all of L1 holds {seen.capacity_chunks:.0f}:"
        " it is never stored",
        evidence=(
            _figure("largest request (access log)", seen.largest_request, "chunks"),
            _figure("L1 capacity", seen.capacity_chunks, "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def watermark_too_high(seen: Observation) -> Symptom | None:
    """Stores fail although eviction never starts: the free space below the watermark is smaller than the stores."""
    metrics, watermark = seen.metrics, seen.config.eviction_watermark
    used = (metrics.utilization_percent or 0) / 100
    if not metrics.failed_stores or metrics.evictions or watermark is None or used >= watermark:
        return None
    return Symptom(
        code=SymptomCode.WATERMARK_TOO_HIGH,
        severity=Severity.CRITICAL,
        summary=f"L1 is frozen: {used:.0%} used is below the watermark of {watermark:.0%}, so nothing is evicted, while"
        f" {metrics.failed_stores} chunks did not fit into what is free and were dropped",
        evidence=(
            _figure("chunks not stored (l1_allocation_failure_chunks)", metrics.failed_stores, "chunks"),
            _figure("L1 used (l1_usage_ratio)", used, "share"),
            _figure("eviction watermark (/status)", watermark, "share"),
        ),
    )


def stores_fail(seen: Observation) -> Symptom | None:
    """Chunks are dropped because L1 had no room between two eviction ticks; the engine was told they were stored."""
    failed, stored = seen.metrics.failed_stores or 0, seen.metrics.stored_chunks or 0
    if not failed or failed / (failed + stored) < FAILING:
        return None
    return Symptom(
        code=SymptomCode.STORES_FAIL,
        severity=Severity.HIGH if failed > stored else Severity.MEDIUM,
        summary=f"{failed} of {failed + stored} chunks to be stored were dropped for want of room;"
        " their engines were told all went well",
        evidence=(
            _figure("chunks not stored (l1_allocation_failure_chunks)", failed, "chunks"),
            _figure("chunks stored (l1_write_chunks)", stored, "chunks"),
        ),
    )


def nothing_to_reuse(seen: Observation) -> Symptom | None:
    """The requests share no prefixes: no size and no setting can help."""
    metrics = seen.metrics
    if not metrics.tokens.requested:
        return None
    if seen.curve is not None:
        ceiling = seen.curve.ceiling()
        if ceiling >= NOTICEABLE:
            return None
        evidence = (_figure("token hit rate of an unbounded cache (access log)", ceiling, "share"),)
        summary = f"only {ceiling:.1%} of the tokens repeat an earlier prefix: no cache setting can help"
    elif metrics.tokens.hit or metrics.evictions or metrics.failed_stores:
        return None
    else:
        evidence = (_figure("tokens requested (lookup_requested_tokens)", metrics.tokens.requested, "tokens"),)
        summary = "nothing was found although nothing was evicted or dropped in the window: no prefix came twice"
    return Symptom(code=SymptomCode.NOTHING_TO_REUSE, severity=Severity.INFO, summary=summary, evidence=evidence, rung=seen.rung)


def l1_too_small(seen: Observation) -> Symptom | None:
    """Chunks that were evicted, or never kept, are asked for again."""
    measured, curve = seen.metrics.tokens.hit_rate, seen.curve
    if measured is None or curve is None or not (seen.metrics.evictions or seen.metrics.failed_stores):
        return None
    lost = curve.ceiling() - measured
    if lost < NOTICEABLE:
        return None
    return Symptom(
        code=SymptomCode.L1_TOO_SMALL,
        severity=Severity.HIGH if lost > 0.1 else Severity.MEDIUM,
        summary=f"{lost:.1%} of the tokens had been computed before and were gone when asked for again: the hit rate is"
        f" {measured:.1%}, with room for everything it would be {curve.ceiling():.1%}",
        evidence=(
            _figure("token hit rate (lookup_hit_tokens / lookup_requested_tokens)", measured, "share"),
            _figure("token hit rate of an unbounded cache (access log)", curve.ceiling(), "share"),
            _figure("distinct chunks asked for (access log)", curve.footprint, "chunks"),
            _figure("chunks removed from L1 (l1_evicted_chunks)", seen.metrics.evictions or 0, "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def evicted_too_soon(seen: Observation) -> Symptom | None:
    """Without an access log: LMCache's own sample says that evicted chunks were soon asked for again."""
    metrics = seen.metrics
    followed, needed, evictions = metrics.evicted_followed or 0, metrics.evicted_needed or 0, metrics.evictions or 0
    if seen.curve is not None or followed < ENOUGH_FOLLOWED or needed / followed < NOTICEABLE:
        return None
    lost = min(needed / followed * evictions * (seen.config.chunk_size or 0) / max(metrics.tokens.requested, 1), 1.0)
    return Symptom(
        code=SymptomCode.L1_TOO_SMALL,
        severity=Severity.MEDIUM,
        summary=f"{needed} of {followed} evicted chunks that LMCache followed were asked for again within two minutes, which is"
        f" at most {lost:.1%} of the requested tokens; how much a larger L1 would bring, only an access log can tell",
        evidence=(
            _figure("evicted chunks followed (l1_chunk_evict_reuse_gap)", followed, "chunks"),
            _figure("of these, asked for again within two minutes", needed, "chunks"),
            _figure("upper bound of the tokens lost", lost, "share"),
        ),
        rung=Rung.HISTOGRAMS,
    )


def under_stored(seen: Observation) -> Symptom | None:
    """Engines compute chunks and do not store them, so they are missed again and again."""
    metrics, chunk = seen.metrics, seen.config.chunk_size
    missed = (metrics.tokens.requested - metrics.tokens.hit) / chunk if chunk else 0
    offered = (metrics.stored_chunks or 0) + (metrics.failed_stores or 0)
    if metrics.stored_chunks is None or missed < ENOUGH_LOOKUPS or offered > 0.5 * missed:
        return None
    return Symptom(
        code=SymptomCode.UNDER_STORED,
        severity=Severity.HIGH,
        summary=f"{missed:.0f} chunks were missed and only {offered} were handed over to be stored: the engines keep what they"
        " compute to themselves; look at the connector's settings (kv_role, save_decode_cache)",
        evidence=(
            _figure("chunks missed (lookup_requested_tokens - lookup_hit_tokens)", missed, "chunks"),
            _figure("chunks handed over (l1_write_chunks + l1_allocation_failure_chunks)", offered, "chunks"),
        ),
    )


def tails_not_cached(seen: Observation) -> Symptom | None:
    """Much of the prompts lies in their last, started chunk, which is never cached."""
    if seen.log is None or not seen.in_window.any():
        return None
    tokens = int(seen.log.tokens[seen.in_window].sum())
    tails = tokens - int(seen.log.chunks_per_request[seen.in_window].sum()) * seen.log.chunk_size
    if not tokens or tails / tokens < LARGE_TAILS:
        return None
    return Symptom(
        code=SymptomCode.TAILS_NOT_CACHED,
        severity=Severity.LOW,
        summary=f"{tails / tokens:.0%} of the prompt tokens lie in started chunks of {seen.log.chunk_size} tokens, which are"
        " never cached; a smaller chunk size would cache more of them",
        evidence=(_figure("tokens in started chunks (access log)", tails, "tokens"),),
        rung=Rung.ACCESS_LOG,
    )


def l2_loads_fail(seen: Observation) -> Symptom | None:
    """Chunks found in L2 are recomputed, because L1 had no room to load them into."""
    failed = seen.metrics.l2_loads_failed or 0
    if not failed:
        return None
    return Symptom(
        code=SymptomCode.L2_LOADS_FAIL,
        severity=Severity.MEDIUM,
        summary=f"{failed} chunks were found in L2 and recomputed all the same, because L1 had no room to load them into",
        evidence=(_figure("L2 loads failed (l2_prefetch_failure, l1_oom)", failed, "chunks"),),
    )


def l2_unbounded(seen: Observation) -> Symptom | None:
    """An L2 adapter that never evicts fills its disk or memory."""
    unbounded = [adapter.type for adapter in seen.config.l2_adapters or () if "eviction" not in adapter.settings]
    if not unbounded:
        return None
    return Symptom(
        code=SymptomCode.L2_UNBOUNDED,
        severity=Severity.LOW,
        summary=f"the L2 adapters {', '.join(unbounded)} have no eviction block and grow without bound; give a capacity and an"
        " eviction block, or let LMCache's coordinator bound them by quotas",
        evidence=(_figure("L2 adapters without eviction (/config)", len(unbounded), "adapters"),),
    )


def evicts_unjudged(seen: Observation) -> Symptom | None:
    """L1 is full and evicts, and neither a log nor LMCache's own sample says whether that costs hits."""
    if seen.curve is not None or not seen.metrics.evictions or (seen.metrics.evicted_followed or 0) >= ENOUGH_FOLLOWED:
        return None
    return Symptom(
        code=SymptomCode.EVICTS_UNJUDGED,
        severity=Severity.LOW,
        summary=f"{seen.metrics.evictions} chunks were removed from L1; whether they were needed again cannot be told from"
        " counters: start the server with --lookup-hash-log-dir and name that folder as access_log in the directory",
        evidence=(_figure("chunks removed from L1 (l1_evicted_chunks)", seen.metrics.evictions, "chunks"),),
    )


RULES: tuple[Rule, ...] = (
    eviction_dead,
    counters_incomplete,
    no_data,
    short_prompts,
    request_larger_than_l1,
    watermark_too_high,
    stores_fail,
    nothing_to_reuse,
    l1_too_small,
    evicted_too_soon,
    under_stored,
    tails_not_cached,
    l2_loads_fail,
    l2_unbounded,
    evicts_unjudged,
)


def diagnose(seen: Observation) -> tuple[Symptom, ...]:
    """All symptoms, worst first; `nothing_wrong` when there is none."""
    order = list(Severity)
    found = [symptom for rule in RULES if (symptom := rule(seen)) is not None]
    if not found:
        rate = seen.metrics.tokens.hit_rate or 0.0
        found = [
            Symptom(
                code=SymptomCode.NOTHING_WRONG, severity=Severity.INFO, summary=f"nothing is wrong: token hit rate {rate:.1%}"
            )
        ]
    return tuple(sorted(found, key=lambda symptom: -order.index(symptom.severity)))


def _figure(metric: str, value: float, unit: str) -> Evidence:
    return Evidence(metric=metric, value=float(value), unit=unit)
