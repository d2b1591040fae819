"""Symptoms of the L2 tier: what is lost there, or read from it too slowly or too often."""

from agent_tools.models import L2Adapter, Rung, Severity, Symptom, SymptomCode
from agent_tools.models.config import DEFAULT_TENANT
from agent_tools.plain import plain
from agent_tools.recommender.observation import Observation

from .rule import NOTICEABLE, figure

REREAD = 0.05
"""Share of the tokens that L1 could have served instead of L2 that is worth a word."""
LOST = 0.001
"""Chunks that L2 did not deliver, as a share of those asked for, that are more than an eviction in between explains."""


def l2_too_small(seen: Observation) -> Symptom | None:
    """What L2 evicts is asked for again."""
    measured, curve, evicted = seen.metrics.tokens.hit_rate, seen.curve, seen.metrics.l2_evictions or 0
    if measured is None or curve is None or not evicted or curve.ceiling() - measured < NOTICEABLE:
        return None
    lost = curve.ceiling() - measured
    return Symptom(
        code=SymptomCode.L2_TOO_SMALL,
        severity=Severity.HIGH if lost > 0.1 else Severity.MEDIUM,
        summary=f"{lost:.1%} of the tokens had been computed before and were in neither tier when asked for again: the hit rate"
        f" is {measured:.1%}, with room for everything it would be {curve.ceiling():.1%}, and L2 evicted {evicted} chunks",
        evidence=(
            figure("token hit rate (lookup_hit_tokens / lookup_requested_tokens)", measured, "share"),
            figure("token hit rate of an unbounded cache (access log)", curve.ceiling(), "share"),
            figure("chunks that L2 evicted (l2_evicted_objects_chunks)", evicted, "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def l2_not_retained(seen: Observation) -> Symptom | None:
    """Chunks are read from L2 again and again, because they are dropped from L1 after each read."""
    tokens, curve, capacity = seen.metrics.tokens, seen.curve, seen.capacity_chunks
    if curve is None or capacity is None or seen.config.l2_prefetch_policy != "default" or not tokens.hit_l2:
        return None
    working = capacity * (seen.config.eviction_watermark or 1) * (1 - (seen.config.eviction_ratio or 0) / 2)
    served, possible = tokens.hit_l1 / tokens.requested, curve.hit_rate(working)
    if possible - served < REREAD:
        return None
    return Symptom(
        code=SymptomCode.L2_NOT_RETAINED,
        severity=Severity.LOW,
        summary=f"{tokens.hit_l2 / tokens.requested:.1%} of the tokens come from L2 and are dropped from L1 after the read, so"
        f" that each is read from L2 again; L1 serves {served:.1%} and could serve about {possible:.1%} with policy retain",
        evidence=(
            figure("tokens from L2 (lookup_hit_l2_tokens)", tokens.hit_l2, "tokens"),
            figure("share of the tokens from L1 (lookup_hit_l1_tokens)", served, "share"),
            figure("share an LRU of L1's working size would serve (access log)", possible, "share"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def l2_slow(seen: Observation) -> Symptom | None:
    """Loading a hit from L2 takes longer than computing it: slower than no cache."""
    load, even = seen.l2_load_gb_per_second, seen.break_even_gb_per_second
    if load is None or even is None or load >= even or not seen.metrics.tokens.hit_l2:
        return None
    return Symptom(
        code=SymptomCode.L2_SLOW,
        severity=Severity.HIGH,
        summary=f"L2 delivers {load:.3g} GB/s, and below {even:.3g} GB/s the engine computes a prefix sooner than L2 delivers"
        " it: its hits make time to first token worse; put L2 on faster storage, or detach it",
        evidence=(
            figure("mean speed of loads from L2 (l2_load_throughput), or as the operator states", load, "GB/s"),
            figure("break-even speed: KV bytes a token x prefill tokens/s", even, "GB/s"),
        ),
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
        evidence=(figure("L2 loads failed (l2_prefetch_failure, l1_oom)", failed, "chunks"),),
    )


def l2_loses_chunks(seen: Observation) -> Symptom | None:
    """L2 says that it has chunks and then does not deliver them: its storage is broken, or emptied by somebody else."""
    lost = seen.metrics.l2_loads_lost or 0
    asked, chunk = seen.metrics.tokens.requested, seen.config.chunk_size or 0
    if not lost or lost * chunk < LOST * asked:
        return None
    return Symptom(
        code=SymptomCode.L2_LOSES_CHUNKS,
        severity=Severity.HIGH,
        summary=f"L2 said that it has {lost} chunks and did not deliver them; they, and all behind them in their prompts, were"
        " recomputed. No setting helps: look at the storage behind L2 and at who else deletes from it",
        evidence=(figure("chunks that L2 did not deliver (l2_prefetch_failure, not_found)", lost, "chunks"),),
    )


def l2_unbounded(seen: Observation) -> Symptom | None:
    """An L2 adapter that never evicts fills its disk or memory."""
    unbounded = [adapter for adapter in seen.config.l2_adapters or () if not _is_bounded(adapter)]
    if not unbounded:
        return None
    return Symptom(
        code=SymptomCode.L2_UNBOUNDED,
        severity=Severity.LOW,
        summary="; ".join(map(_why_unbounded, unbounded))
        + ": it grows without bound; give it a capacity and an eviction block, or let LMCache's coordinator bound it by quotas",
        evidence=(figure("L2 adapters that never evict (/config)", len(unbounded), "adapters"),),
    )


def _is_bounded(adapter: L2Adapter) -> bool:
    """``fs`` has no capacity, and evicts by tenants' quotas only (0.5.6 skips any other eviction block with a warning)."""
    if adapter.eviction is None:
        return False
    return adapter.type != "fs" or adapter.by_tenant


def _why_unbounded(adapter: L2Adapter) -> str:
    if adapter.type == "fs":
        return "the L2 adapter fs has no capacity and keeps to no eviction block but IsolatedLRU"
    declared = f" declares {adapter.size_mb:g} MB but" if adapter.size_mb else ""
    return f"the L2 adapter {adapter.type}{declared} has no eviction block"


def tenant_without_quota(seen: Observation) -> Symptom | None:
    """An L2 that evicts by tenant deletes, within a second, all that a tenant without a quota stores."""
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
        summary=f"L2 evicts by tenant (IsolatedLRU), and {len(wiped)} tenants with traffic have no quota on this server: {names};"
        " all they store in L2 is deleted within a second. Set one for each (PUT /quota/{salt}); quotas are lost at a restart",
        evidence=(
            figure("tenants with traffic and without a quota (/quota)", len(wiped), "tenants"),
            figure("tokens they asked for (lookup_requested_tokens)", asked, "tokens"),
        ),
    )
