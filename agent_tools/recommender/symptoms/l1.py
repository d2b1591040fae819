"""Symptoms of the L1 tier: what its size, eviction watermark and eviction ratio cost."""

import numpy as np
import numpy.typing as npt

from agent_tools.models import Rung, Severity, Symptom, SymptomCode
from agent_tools.models.config import SKIP_L1
from agent_tools.plain import points
from agent_tools.recommender.observation import Observation
from agent_tools.workload.access_log import AccessLog

from .rule import NOTICEABLE, figure

ENOUGH_FOLLOWED = 20
"""Fewest evicted chunks that LMCache must have followed for a conclusion about all evicted chunks."""
FAILING = 0.01
"""Smallest share of dropped stores that is reported."""
FULL = 0.8
"""Used share of L1 from which an L1 without eviction is called full: a store needs room for all its chunks at once."""
FOLLOWED_SECONDS = 300.0
"""Seconds after which LMCache records an evicted chunk that nobody asked for. Others are recorded when they are asked for."""
FILLED = 0.5
"""Smallest share of a window whose evictions can be in LMCache's sample for a conclusion."""
LOCKED = 0.2
"""Share of L1's chunks that requests in flight cannot explain as locked."""


def request_larger_than_l1(seen: Observation) -> Symptom | None:
    """Report a request whose chunks do not even fit into an empty L1."""
    if seen.largest_request is None or seen.capacity_chunks is None or seen.largest_request <= seen.capacity_chunks:
        return None
    return Symptom(
        code=SymptomCode.REQUEST_LARGER_THAN_L1,
        severity=Severity.HIGH,
        summary=f"The largest request has {seen.largest_request:,} chunks, but L1 holds only {seen.capacity_chunks:,.0f}:"
        " the server can never store this request whole; enlarge L1",
        evidence=(
            figure("largest request (access log)", seen.largest_request, "chunks"),
            figure("L1 capacity", seen.capacity_chunks, "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def watermark_too_high(seen: Observation) -> Symptom | None:
    """Report that stores fail while eviction never starts: L1 is below its watermark, but each store needs more than is free.

    The rule is silent if the model shows that a lower watermark would serve no more.
    """
    metrics, watermark = seen.metrics, seen.config.eviction_watermark
    used = (metrics.utilization_percent or 0) / 100
    if not metrics.failed_stores or metrics.evictions or watermark is None or used >= watermark or seen.never_evicts:
        return None
    from agent_tools.recommender.freezing import lost_by_freezing  # noqa: PLC0415  the model takes long to load

    lost = lost_by_freezing(seen)
    if lost is not None and lost < NOTICEABLE:
        return None
    cost = "whether that costs hits, only an access log shows" if lost is None else f"a lower one would add {points(lost)}"
    return Symptom(
        code=SymptomCode.WATERMARK_TOO_HIGH,
        severity=Severity.MEDIUM if lost is None else Severity.CRITICAL,
        summary=f"L1 is frozen: it is {used:.0%} used, which is below the watermark of {watermark:.0%}, so the server evicts"
        f" nothing. It dropped {metrics.failed_stores:,} chunks that did not fit into the free space."
        f" The watermark is too high: {cost}",
        evidence=(
            figure("stores dropped because L1 was full (l1_allocation_failure_chunks)", metrics.failed_stores, "chunks"),
            figure("L1 used (l1_usage_ratio)", used, "share"),
            figure("eviction watermark (/status)", watermark, "share"),
        ),
    )


def l1_never_evicts(seen: Observation) -> Symptom | None:
    """Report that L1 has policy noop and is full: the server drops what comes new. A pure buffer in front of L2 is healthy."""
    metrics = seen.metrics
    used, dropped = (metrics.utilization_percent or 0) / 100, (metrics.failed_stores or 0) + (metrics.l2_loads_failed or 0)
    if not seen.never_evicts or seen.l1_is_buffer or not dropped or used < FULL:
        return None
    retains = seen.config.l2_adapters and seen.config.l2_store_policy == SKIP_L1
    instead = ", or set l2_prefetch_policy default, so that L1 is only a buffer in front of L2" if retains else ""
    return Symptom(
        code=SymptomCode.L1_NEVER_EVICTS,
        severity=Severity.HIGH,
        summary=f"L1 never evicts (policy noop) and is {used:.0%} full, so the server dropped {dropped:,} chunks that had no"
        f" room; set eviction_policy lru{instead}",
        evidence=(
            figure("chunks without room in L1 (l1_allocation_failure_chunks, l2_prefetch_failure)", dropped, "chunks"),
            figure("L1 used (l1_usage_ratio)", used, "share"),
        ),
    )


def stores_fail(seen: Observation) -> Symptom | None:
    """Report that the server drops chunks because L1 fills up between two eviction ticks. It reports success to the engine."""
    failed, stored = seen.metrics.failed_stores or 0, seen.metrics.stored_chunks or 0
    if not failed or failed / (failed + stored) < FAILING:
        return None
    return Symptom(
        code=SymptomCode.STORES_FAIL,
        severity=Severity.HIGH if failed > stored else Severity.MEDIUM,
        summary=f"The server dropped {failed:,} of {failed + stored:,} chunks because L1 was full;"
        " it reported success to the engines",
        evidence=(
            figure("stores dropped because L1 was full (l1_allocation_failure_chunks)", failed, "chunks"),
            figure("chunks stored (l1_write_chunks)", stored, "chunks"),
        ),
    )


def locks_held(seen: Observation) -> Symptom | None:
    """Report that locks hold much of L1. The server cannot evict a locked chunk."""
    locked, resident = seen.metrics.locked_chunks or 0, seen.metrics.resident_chunks or 0
    if not resident or locked / resident < LOCKED or locked <= 2 * (seen.largest_request or 0):
        return None
    return Symptom(
        code=SymptomCode.LOCKS_HELD,
        severity=Severity.MEDIUM,
        summary=f"Requests hold locks on {locked:,} of {resident:,} chunks in L1, and the server cannot evict these. An engine"
        " that looks up chunks and never retrieves or frees them locks them for up to --l1-read-ttl-seconds (300): look for"
        " engines that died or hang",
        evidence=(
            figure("chunks locked (/status, read_locked_count + write_locked_count)", locked, "chunks"),
            figure("chunks in L1", resident, "chunks"),
        ),
    )


def l1_too_small(seen: Observation) -> Symptom | None:
    """Report that requests ask for chunks again that the server evicted or never stored."""
    measured, curve = seen.metrics.tokens.hit_rate, seen.curve
    lossy = seen.metrics.failed_stores or (seen.metrics.evictions and not seen.config.l2_adapters)
    if measured is None or curve is None or not lossy:
        return None
    lost = curve.ceiling() - measured
    if lost < NOTICEABLE or _served_by_engine(seen, curve.ceiling()):
        return None
    return Symptom(
        code=SymptomCode.L1_TOO_SMALL,
        severity=Severity.HIGH if lost > 0.1 else Severity.MEDIUM,
        summary=f"{lost:.1%} of the requested tokens had been computed before but were no longer in the cache: the token hit rate"
        f" is {measured:.1%}; with an unbounded cache it would be {curve.ceiling():.1%}",
        evidence=(
            figure("token hit rate (lookup_hit_tokens / lookup_requested_tokens)", measured, "share"),
            figure("token hit rate of an unbounded cache (access log)", curve.ceiling(), "share"),
            figure("distinct chunks requested (access log)", curve.footprint, "chunks"),
            figure("chunks removed from L1 (l1_evicted_chunks)", seen.metrics.evictions or 0, "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def _served_by_engine(seen: Observation, unbounded: float) -> bool:
    """Return whether the engine found as much in its own prefix cache and in LMCache as an unbounded L1 would hold.

    Then nothing that L1 lost was computed again. This is counted, not modelled.
    """
    engine, requested = seen.metrics.engine, seen.metrics.tokens.requested
    if engine is None or engine.own_cache_tokens is None or seen.other_figures is not None:
        return False
    return (unbounded - NOTICEABLE) * requested < engine.own_cache_tokens + (engine.lmcache_tokens or 0)


def returns_too_late(seen: Observation) -> Symptom | None:
    """Report that prompts come back after longer than L1 holds them: it keeps chunks that are evicted before they are needed."""
    log, size, stored = seen.log, seen.capacity_chunks, seen.metrics.stored_chunks
    if log is None or seen.curve is None or size is None or not stored or not seen.metrics.evictions:
        return None
    if seen.l1_is_buffer or _l2_holds_them(seen):
        return None
    gaps = _gaps(log, seen.in_window)
    seconds = seen.metrics.window.seconds
    if len(gaps) < ENOUGH_FOLLOWED or not seconds:
        return None
    per_second = stored * log.sampling_rate / seconds
    held, late = size * (seen.config.eviction_watermark or 1.0) / per_second, float(np.median(gaps))
    if late <= held:
        return None
    needed = late * per_second / (seen.config.eviction_watermark or 1.0)
    return Symptom(
        code=SymptomCode.RETURNS_TOO_LATE,
        severity=Severity.LOW,
        summary=f"Prompts come back after longer than L1 holds them: half of the chunks that are asked for again come back after"
        f" {late:,.0f} s or later, and at {per_second:,.1f} stored chunks a second L1 holds a chunk for about {held:,.0f} s; it"
        f" would have to hold {needed / size:,.1f} times as much, or L2 would",
        evidence=(
            figure("median time until a chunk is asked for again (access log)", late, "s"),
            figure("time that L1 holds a chunk (size / l1_write_chunks)", held, "s"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def _gaps(log: AccessLog, counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the seconds since the last request for the same chunk, for each repeated chunk of the counted requests."""
    request = np.repeat(np.arange(len(log)), log.chunks_per_request)
    order = np.argsort(log.chunk_ids, kind="stable")
    ids, times, inside = log.chunk_ids[order], log.timestamps[request][order], counted[request][order]
    gaps: npt.NDArray[np.float64] = np.diff(times)[(np.diff(ids) == 0) & inside[1:]]
    return gaps


def evicted_too_soon(seen: Observation) -> Symptom | None:
    """Without an access log, report from LMCache's own sample that requests soon ask for evicted chunks again."""
    metrics = seen.metrics
    followed, needed, evictions = metrics.evicted_followed or 0, metrics.evicted_needed or 0, metrics.evictions or 0
    filled = _filled(seen)
    if seen.curve is not None or _l2_holds_them(seen) or followed < ENOUGH_FOLLOWED or filled < FILLED:
        return None
    share = needed / (needed + (followed - needed) / filled)
    if share < NOTICEABLE:
        return None
    lost = min(share * evictions * (seen.config.chunk_size or 0) / max(metrics.tokens.requested, 1), 1.0)
    return Symptom(
        code=SymptomCode.L1_TOO_SMALL,
        severity=Severity.MEDIUM,
        summary=f"Requests asked again within two minutes for {needed:,} of the {followed:,} evicted chunks that LMCache"
        f" followed. This costs at most {lost:.1%} of the requested tokens; only an access log shows the gain of a larger L1",
        evidence=(
            figure("evicted chunks followed (l1_chunk_evict_reuse_gap)", followed, "chunks"),
            figure("followed chunks requested again within two minutes (l1_chunk_evict_reuse_gap)", needed, "chunks"),
            figure("upper bound of the requested tokens lost", lost, "share"),
        ),
        rung=Rung.HISTOGRAMS,
    )


def evicts_unjudged(seen: Observation) -> Symptom | None:
    """Report that L1 evicts while neither an access log nor LMCache's own sample shows whether eviction costs hits."""
    if seen.curve is not None or not seen.metrics.evictions or seen.l1_is_buffer or _l2_holds_them(seen):
        return None
    if (seen.metrics.evicted_followed or 0) >= ENOUGH_FOLLOWED and _filled(seen) >= FILLED:
        return None
    return Symptom(
        code=SymptomCode.EVICTS_UNJUDGED,
        severity=Severity.LOW,
        summary=f"The server removed {seen.metrics.evictions:,} chunks from L1. Counters do not show whether requests needed them"
        f" again; an access log does. To get one from an `lmcache server`, {_how_to_log(seen)} --lookup-hash-log-dir and set"
        " access_log in caches.toml to that folder",
        evidence=(figure("chunks removed from L1 (l1_evicted_chunks)", seen.metrics.evictions, "chunks"),),
    )


def _filled(seen: Observation) -> float:
    """Return the share of the window whose evictions can be in LMCache's sample whether or not they were needed again.

    Before a chunk is `FOLLOWED_SECONDS` old, it is in the sample only if it was needed: the sample of a young server shows 100 %.
    """
    span = seen.metrics.window.seconds
    if seen.age_seconds is None or span <= 0:
        return 1.0
    return min(max(seen.age_seconds - FOLLOWED_SECONDS, 0.0) / span, 1.0)


def _l2_holds_them(seen: Observation) -> bool:
    """Return whether what L1 evicts is still in L2: each chunk is written to both, and L2 has evicted nothing."""
    return bool(seen.config.l2_adapters) and seen.metrics.l2_evictions == 0 and not seen.metrics.failed_stores


def _how_to_log(seen: Observation) -> str:
    """Say how to start the server with a log. Versions before 0.5.6 load no modules."""
    if not seen.loads_modules:
        return "start it with"
    return "start it with --server-module agent_tools.server_module, or start it with"
