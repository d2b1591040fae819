"""Symptoms of the L1 tier: what its size, watermark and ratio cost."""

from agent_tools.models import Rung, Severity, Symptom, SymptomCode
from agent_tools.recommender.observation import Observation

from .rule import NOTICEABLE, figure

ENOUGH_FOLLOWED = 20
"""Fewer evicted chunks followed than this say nothing about the others."""
FAILING = 0.01
"""Share of the chunks to be stored whose loss is worth a word."""
LOCKED = 0.2
"""Share of L1 held by locks that is more than the requests under way explain."""


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
            figure("largest request (access log)", seen.largest_request, "chunks"),
            figure("L1 capacity", seen.capacity_chunks, "chunks"),
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
            figure("chunks not stored (l1_allocation_failure_chunks)", metrics.failed_stores, "chunks"),
            figure("L1 used (l1_usage_ratio)", used, "share"),
            figure("eviction watermark (/status)", watermark, "share"),
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
            figure("chunks not stored (l1_allocation_failure_chunks)", failed, "chunks"),
            figure("chunks stored (l1_write_chunks)", stored, "chunks"),
        ),
    )


def locks_held(seen: Observation) -> Symptom | None:
    """Requests that never ended hold much of L1 locked, so that it cannot be evicted."""
    locked, resident = seen.metrics.locked_chunks or 0, seen.metrics.resident_chunks or 0
    if not resident or locked / resident < LOCKED or locked <= 2 * (seen.largest_request or 0):
        return None
    return Symptom(
        code=SymptomCode.LOCKS_HELD,
        severity=Severity.MEDIUM,
        summary=f"{locked} of {resident} chunks in L1 are locked by requests and cannot be evicted; an engine that looks up and"
        " never retrieves or frees holds them for up to --l1-read-ttl-seconds (300): look for engines that died or hang",
        evidence=(
            figure("chunks locked (/status, read_locked_count + write_locked_count)", locked, "chunks"),
            figure("chunks in L1", resident, "chunks"),
        ),
    )


def l1_too_small(seen: Observation) -> Symptom | None:
    """Chunks that were evicted, or never kept, are asked for again."""
    measured, curve = seen.metrics.tokens.hit_rate, seen.curve
    lossy = seen.metrics.failed_stores or (seen.metrics.evictions and not seen.config.l2_adapters)
    if measured is None or curve is None or not lossy:
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
            figure("token hit rate (lookup_hit_tokens / lookup_requested_tokens)", measured, "share"),
            figure("token hit rate of an unbounded cache (access log)", curve.ceiling(), "share"),
            figure("distinct chunks asked for (access log)", curve.footprint, "chunks"),
            figure("chunks removed from L1 (l1_evicted_chunks)", seen.metrics.evictions or 0, "chunks"),
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
            figure("evicted chunks followed (l1_chunk_evict_reuse_gap)", followed, "chunks"),
            figure("of these, asked for again within two minutes", needed, "chunks"),
            figure("upper bound of the tokens lost", lost, "share"),
        ),
        rung=Rung.HISTOGRAMS,
    )


def evicts_unjudged(seen: Observation) -> Symptom | None:
    """L1 is full and evicts, and neither a log nor LMCache's own sample says whether that costs hits."""
    if seen.curve is not None or not seen.metrics.evictions or (seen.metrics.evicted_followed or 0) >= ENOUGH_FOLLOWED:
        return None
    return Symptom(
        code=SymptomCode.EVICTS_UNJUDGED,
        severity=Severity.LOW,
        summary=f"{seen.metrics.evictions} chunks were removed from L1; whether they were needed again cannot be told from"
        " counters, only from an access log; of an `lmcache server`: start it with --server-module agent_tools.server_module, or"
        " with --lookup-hash-log-dir and name that folder as access_log in the directory",
        evidence=(figure("chunks removed from L1 (l1_evicted_chunks)", seen.metrics.evictions, "chunks"),),
    )
