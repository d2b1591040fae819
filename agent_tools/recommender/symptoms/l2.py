"""Symptoms of the L2 tier: chunks that L2 loses, and loads from L2 that are too slow or too frequent."""

from agent_tools.models import L2Adapter, Rung, Severity, Symptom, SymptomCode
from agent_tools.models.config import DEFAULT_TENANT
from agent_tools.plain import plain
from agent_tools.recommender.observation import Observation

from .rule import NOTICEABLE, figure

REREAD = 0.05
"""Smallest share of tokens that L1 could serve instead of L2 and that is reported."""
LOST = 0.001
"""Share of the requested chunks that L2 found but did not deliver. A smaller share can be due to eviction in between."""


def l2_too_small(seen: Observation) -> Symptom | None:
    """Report that requests ask again for chunks that L2 evicted."""
    measured, curve, evicted = seen.metrics.tokens.hit_rate, seen.curve, seen.metrics.l2_evictions or 0
    if measured is None or curve is None or not evicted or curve.ceiling() - measured < NOTICEABLE:
        return None
    lost = curve.ceiling() - measured
    return Symptom(
        code=SymptomCode.L2_TOO_SMALL,
        severity=Severity.HIGH if lost > 0.1 else Severity.MEDIUM,
        summary=f"{lost:.1%} of the requested tokens had been computed before but were no longer in L1 or L2: the token hit rate"
        f" is {measured:.1%}; with an unbounded cache it would be {curve.ceiling():.1%}. L2 evicted {evicted:,} chunks",
        evidence=(
            figure("token hit rate (lookup_hit_tokens / lookup_requested_tokens)", measured, "share"),
            figure("token hit rate of an unbounded cache (access log)", curve.ceiling(), "share"),
            figure("chunks that L2 evicted (l2_evicted_objects_chunks)", evicted, "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def l2_not_retained(seen: Observation) -> Symptom | None:
    """Report that the server loads the same chunks from L2 repeatedly, because it drops them from L1 after each read."""
    tokens, curve, capacity = seen.metrics.tokens, seen.curve, seen.capacity_chunks
    if curve is None or capacity is None or seen.config.l2_prefetch_policy != "default" or not tokens.hit_l2:
        return None
    if seen.never_evicts or seen.l1_is_buffer:  # an L1 that keeps what it loads and never evicts fills up
        return None
    working = capacity * (seen.config.eviction_watermark or 1) * (1 - (seen.config.eviction_ratio or 0) / 2)
    served, possible = tokens.hit_l1 / tokens.requested, curve.hit_rate(working)
    if possible - served < REREAD:
        return None
    return Symptom(
        code=SymptomCode.L2_NOT_RETAINED,
        severity=Severity.LOW,
        summary=f"{tokens.hit_l2 / tokens.requested:.1%} of the requested tokens come from L2. The server drops them from L1"
        f" after the read and loads them from L2 again for the next request. L1 serves {served:.1%} of the requested tokens and"
        f" could serve about {possible:.1%} with prefetch policy retain",
        evidence=(
            figure("tokens from L2 (lookup_hit_l2_tokens)", tokens.hit_l2, "tokens"),
            figure("share of the requested tokens from L1 (lookup_hit_l1_tokens)", served, "share"),
            figure("share that an LRU of L1's working size would serve (access log)", possible, "share"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def l2_slow(seen: Observation) -> Symptom | None:
    """Report that loading a hit from L2 takes longer than computing it."""
    load, even = seen.l2_load_gb_per_second, seen.break_even_gb_per_second
    if load is None or even is None or load >= even or not seen.metrics.tokens.hit_l2:
        return None
    return Symptom(
        code=SymptomCode.L2_SLOW,
        severity=Severity.HIGH,
        summary=f"L2 delivers {load:.3g} GB/s; below {even:.3g} GB/s the engine computes a prefix faster than L2 delivers it."
        " Hits in L2 make the time to first token longer; put L2 on faster storage, or detach it",
        evidence=(
            figure("mean speed of loads from L2 (l2_load_throughput, or the operator's figure)", load, "GB/s"),
            figure("break-even speed (KV bytes per token x prefill tokens/s)", even, "GB/s"),
        ),
    )


def l2_loads_fail(seen: Observation) -> Symptom | None:
    """Report that the engine recomputes chunks that are in L2, because L1 had no room to load them."""
    failed = seen.metrics.l2_loads_failed or 0
    if not failed:
        return None
    return Symptom(
        code=SymptomCode.L2_LOADS_FAIL,
        severity=Severity.MEDIUM,
        summary=f"L1 had no room to load {failed:,} chunks that were in L2, so the engine recomputed them",
        evidence=(figure("L2 loads failed (l2_prefetch_failure, l1_oom)", failed, "chunks"),),
    )


def l2_loses_chunks(seen: Observation) -> Symptom | None:
    """Report that L2 finds chunks but does not deliver them: its storage is broken, or another program deletes from it."""
    lost = seen.metrics.l2_loads_lost or 0
    asked, chunk = seen.metrics.tokens.requested, seen.config.chunk_size or 0
    if not lost or lost * chunk < LOST * asked:
        return None
    return Symptom(
        code=SymptomCode.L2_LOSES_CHUNKS,
        severity=Severity.HIGH,
        summary=f"L2 found {lost:,} chunks but did not deliver them; the engine recomputed them and everything after them in"
        " their prompts. No setting helps: check the storage behind L2 and whether another program deletes from it",
        evidence=(figure("chunks found but not delivered by L2 (l2_prefetch_failure, not_found)", lost, "chunks"),),
    )


def l2_unbounded(seen: Observation) -> Symptom | None:
    """Report an L2 adapter that never evicts. It grows until its disk or memory is full.

    In-process LMCache keeps its local disk within its size, and a remote store keeps itself.
    """
    if seen.in_process:
        return None
    unbounded = [adapter for adapter in seen.config.l2_adapters or () if adapter.settings_known and not _is_bounded(adapter)]
    if not unbounded:
        return None
    return Symptom(
        code=SymptomCode.L2_UNBOUNDED,
        severity=Severity.LOW,
        summary="; ".join(map(_why_unbounded, unbounded))
        + ". L2 grows without bound; set a capacity and an eviction block, or set quotas in LMCache's coordinator",
        evidence=(figure("L2 adapters that never evict (/config)", len(unbounded), "adapters"),),
    )


def _is_bounded(adapter: L2Adapter) -> bool:
    """Return whether the adapter ever evicts.

    ``fs`` has no capacity and evicts only by tenants' quotas. LMCache 0.5.6 skips any other eviction block with a warning.
    """
    if adapter.eviction is None:
        return False
    return adapter.type != "fs" or adapter.by_tenant


def _why_unbounded(adapter: L2Adapter) -> str:
    if adapter.type == "fs":
        return "The L2 adapter fs has no capacity and ignores every eviction block except IsolatedLRU"
    declared = f" declares {adapter.size_mb:g} MB but" if adapter.size_mb else ""
    return f"The L2 adapter {plain(adapter.type)}{declared} has no eviction block"


def tenant_without_quota(seen: Observation) -> Symptom | None:
    """Report tenants without a quota where L2 evicts by tenant. L2 deletes their chunks within a second."""
    isolated = [adapter for adapter in seen.config.l2_adapters or () if adapter.by_tenant]
    quotas = seen.config.tenant_quotas_mb or {}
    wiped = [tenant for tenant in seen.metrics.by_tenant if not quotas.get(tenant or DEFAULT_TENANT)]
    if not isolated or not wiped:
        return None
    asked = sum(seen.metrics.by_tenant[tenant].requested for tenant in wiped)
    names = ", ".join(repr(plain(tenant)) if tenant else "the empty cache salt" for tenant in wiped[:5])
    return Symptom(
        code=SymptomCode.TENANT_WITHOUT_QUOTA,
        severity=Severity.HIGH,
        summary=f"L2 evicts by tenant (IsolatedLRU), and {len(wiped)} tenants with traffic have no quota on this server: {names}."
        " L2 deletes everything that they store within a second. Set a quota for each tenant (PUT /quota/{salt}), and again"
        " after each restart, because the server forgets quotas",
        evidence=(
            figure("tenants with traffic and without a quota (/quota)", len(wiped), "tenants"),
            figure("tokens that these tenants requested (lookup_requested_tokens)", asked, "tokens"),
        ),
    )
