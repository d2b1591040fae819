"""Symptoms of the server itself: what is broken, or started in a way that will break, whatever the traffic."""

from agent_tools.models import EvictionPolicy, Severity, Symptom, SymptomCode
from agent_tools.recommender.observation import Observation

from .rule import figure

ENGINES_DEFAULT_HASH = "builtin"
"""What an engine is started with unless its operator says otherwise; its environment, which holds the seed, is never read."""


def eviction_dead(seen: Observation) -> Symptom | None:
    """A thread of the server is dead; it has to be restarted whatever the figures say."""
    if seen.health.healthy:
        return None
    return Symptom(
        code=SymptomCode.EVICTION_DEAD,
        severity=Severity.CRITICAL,
        summary="; ".join(seen.health.problems),
        evidence=(figure("parts of the server that are broken (/status)", len(seen.health.problems), "parts"),),
    )


def isolated_lru_on_l1(seen: Observation) -> Symptom | None:
    """The eviction thread will die at the first watermark crossing (0.5.6)."""
    if seen.config.eviction_policy is not EvictionPolicy.ISOLATED_LRU:
        return None
    return Symptom(
        code=SymptomCode.ISOLATED_LRU_ON_L1,
        severity=Severity.CRITICAL,
        summary="L1 was started with policy IsolatedLRU, which is for L2 only: LMCache 0.5.6 accepts it, and its eviction thread"
        " dies as soon as L1 is filled to its watermark; restart the server with LRU",
        evidence=(figure("L1 used (l1_usage_ratio)", (seen.metrics.utilization_percent or 0) / 100, "share"),),
    )


def hashes_unstable(seen: Observation) -> Symptom | None:
    """Chunks have other names in every process, so what is in L2 cannot be found after a restart, nor by another server."""
    if seen.config.stable_hashes or not seen.config.l2_adapters:
        return None
    if seen.config.hash_algorithm == ENGINES_DEFAULT_HASH:
        how = (
            "the engine names chunks by Python's own hash (pre_caching_hash_algorithm builtin): what is in L2 is found by other"
            " engines, and after a restart, only if all of them run with the same PYTHONHASHSEED; set it"
        )
    else:
        how = (
            f"the server was started with --hash-algorithm {seen.config.hash_algorithm}, which LMCache does not know: it names"
            " chunks by Python's own hash instead, which differs from process to process, so that L2 is useless to other servers"
            " and after a restart; use blake3"
        )
    return Symptom(
        code=SymptomCode.HASHES_UNSTABLE,
        severity=Severity.HIGH,
        summary=how,
        evidence=(figure("L2 adapters (/config)", len(seen.config.l2_adapters), "adapters"),),
    )


def counters_incomplete(seen: Observation) -> Symptom | None:
    """LMCache dropped events before counting them, or exports no counters at all."""
    dropped = seen.metrics.dropped_events
    if not dropped and seen.metrics.total_requests is not None:  # an engine counts its lookups, and has no events to drop
        return None
    why = seen.metrics.unavailable.get("total_requests", "LMCache dropped events, so all its counters are too low")
    evidence = () if dropped is None else (figure("events dropped (event_bus_dropped_events)", dropped, "events"),)
    return Symptom(code=SymptomCode.COUNTERS_INCOMPLETE, severity=Severity.HIGH, summary=why, evidence=evidence)


def restarted(seen: Observation) -> Symptom | None:
    """The process is another than at the start of the window: L1 began empty, and some of its accounts at zero."""
    if not seen.metrics.window.counters_reset:
        return None
    return Symptom(
        code=SymptomCode.RESTARTED,
        severity=Severity.INFO,
        summary=f"the server restarted in the window: L1 began empty {seen.metrics.window.seconds:.0f} s ago, what is in L2 from"
        " before is found but not counted in its size, and tenants' quotas set on this server are gone",
        evidence=(figure("time since the process started (process_start_time_seconds)", seen.metrics.window.seconds, "seconds"),),
    )
