"""Symptoms of the server itself: parts that are broken, and start options that break the cache under any traffic."""

from agent_tools.deployments.snapshot import NO_COUNTERS
from agent_tools.models import CacheMetrics, EvictionPolicy, Severity, Symptom, SymptomCode
from agent_tools.plain import plain
from agent_tools.recommender.observation import Observation

from .rule import ENOUGH_LOOKUPS, figure

ENGINES_DEFAULT_HASH = "builtin"
"""vLLM's default hash algorithm. We never read the engine's environment, which holds the hash seed."""


UNSERVED = 0.02
"""Share of the lookups that end without being served from which an outage is reported."""
NOT_REGISTERED = (
    "No engine has registered {} on this server{}, so LMCache serves none of its requests and every one of them is computed. The"
    " engine lost its registration (the server was restarted, or reaped a silent engine after --worker-reap-timeout-seconds), or"
    " it registered another world size: restart the engine, and compare its model name and tensor-parallel size with /status"
)


def model_not_registered(seen: Observation) -> Symptom | None:
    """Report that engines ask for a model that nobody registered with that world size. LMCache then serves none of it."""
    recent = _lately(seen)
    figures = recent or seen.metrics
    ended, gone = figures.unregistered_lookups or 0, figures.missing_models
    share = ended / max(figures.total_requests or 0, ended, 1)
    # Totals since the start weigh an outage that began now by all that came before. What is registered now does not.
    missing_now = bool(gone) and (recent is not None or ended >= ENOUGH_LOOKUPS)
    if not ended or (share < UNSERVED and not missing_now):
        return None
    named = [plain(model) or "a model without a name" for model in (gone if missing_now else figures.unregistered_models)]
    world_size = "" if missing_now else " with the world size that it asks for"
    return Symptom(
        code=SymptomCode.MODEL_NOT_REGISTERED,
        severity=Severity.CRITICAL,
        summary=f"{ended:,} of {max(figures.total_requests or 0, ended):,} lookups in {figures.window.seconds:.0f} s found"
        f" nothing to look up. {NOT_REGISTERED.format(', '.join(named[:5]) or 'the model', world_size)}",
        evidence=(
            figure("lookups of a model that is not registered (lookup_early_exit, no_gpu_context)", ended, "lookups"),
            figure("lookups (lookups_requests)", figures.total_requests or ended, "lookups"),
        ),
    )


def _lately(seen: Observation) -> CacheMetrics | None:
    """Return the figures of the last minute, unless nobody asked for anything in it."""
    return seen.recent if seen.recent is not None and seen.recent.total_requests else None


def model_without_layout(seen: Observation) -> Symptom | None:
    """Report that lookups end because the registered model has no layout for its object groups."""
    figures = _lately(seen) or seen.metrics
    ended = figures.layoutless_lookups or 0
    if not ended or ended < UNSERVED * (figures.total_requests or ended):
        return None
    return Symptom(
        code=SymptomCode.MODEL_WITHOUT_LAYOUT,
        severity=Severity.CRITICAL,
        summary=f"{ended:,} of {figures.total_requests or ended:,} lookups ended because the registered model has no layout"
        " for its object groups, so LMCache serves none of them. Restart the engine, so that it registers again with the"
        " --separate-object-groups of this server",
        evidence=(figure("lookups without a layout (lookup_early_exit, no_group_layout_descs)", ended, "lookups"),),
    )


def eviction_dead(seen: Observation) -> Symptom | None:
    """Report that a thread of the server is dead. Only a restart helps."""
    if seen.health.healthy:
        return None
    return Symptom(
        code=SymptomCode.EVICTION_DEAD,
        severity=Severity.CRITICAL,
        summary="; ".join(seen.health.problems),
        evidence=(figure("broken parts of the server (/status)", len(seen.health.problems), "parts"),),
    )


def isolated_lru_on_l1(seen: Observation) -> Symptom | None:
    """Report an L1 with policy IsolatedLRU: its eviction thread dies when L1 first reaches the watermark (0.5.6)."""
    if seen.config.eviction_policy is not EvictionPolicy.ISOLATED_LRU:
        return None
    return Symptom(
        code=SymptomCode.ISOLATED_LRU_ON_L1,
        severity=Severity.CRITICAL,
        summary="L1 runs with policy IsolatedLRU, which is for L2 only. LMCache 0.5.6 accepts it, but the eviction thread dies"
        " when L1 reaches its watermark; restart the server with policy LRU",
        evidence=(figure("L1 used (l1_usage_ratio)", (seen.metrics.utilization_percent or 0) / 100, "share"),),
    )


def hashes_unstable(seen: Observation) -> Symptom | None:
    """Report that every process gives chunks other hashes. After a restart, or on another server, nothing in L2 is found."""
    if seen.config.stable_hashes or not seen.config.l2_adapters:
        return None
    if seen.config.hash_algorithm == ENGINES_DEFAULT_HASH:
        how = (
            "The engine hashes chunks with Python's own hash (pre_caching_hash_algorithm builtin). Other engines, and the same"
            " engine after a restart, find the chunks in L2 only if all run with the same PYTHONHASHSEED; set it"
        )
    else:
        how = (
            f"The server runs with --hash-algorithm {plain(seen.config.hash_algorithm)}, which LMCache does not know, so it"
            " hashes chunks with Python's own hash. That hash differs between processes: other servers, and this server after a"
            " restart, find nothing in L2; use blake3"
        )
    return Symptom(
        code=SymptomCode.HASHES_UNSTABLE,
        severity=Severity.HIGH,
        summary=how,
        evidence=(figure("L2 adapters (/config)", len(seen.config.l2_adapters), "adapters"),),
    )


def counters_incomplete(seen: Observation) -> Symptom | None:
    """Report that LMCache dropped events before it counted them, or that it exports no counters at all."""
    dropped = seen.metrics.dropped_events
    exported = seen.metrics.total_requests is not None or seen.metrics.tokens_served is not None
    if not dropped and exported:  # in-process LMCache has no events to drop
        return None
    why = "LMCache dropped events, so all its counters are too low" if exported else NO_COUNTERS
    evidence = () if dropped is None else (figure("events dropped (event_bus_dropped_events)", dropped, "events"),)
    return Symptom(code=SymptomCode.COUNTERS_INCOMPLETE, severity=Severity.HIGH, summary=why, evidence=evidence)


def restarted(seen: Observation) -> Symptom | None:
    """Report that the server restarted during the window. L1 and some of the server's counts started empty."""
    if not seen.metrics.window.counters_reset:
        return None
    return Symptom(
        code=SymptomCode.RESTARTED,
        severity=Severity.INFO,
        summary=f"The server restarted {seen.metrics.window.seconds:.0f} s ago, within the window. L1 started empty. L2 still"
        " serves older chunks, but the server does not count them in L2's size. Tenants' quotas are gone; set them again",
        evidence=(figure("time since the process started (process_start_time_seconds)", seen.metrics.window.seconds, "seconds"),),
    )
