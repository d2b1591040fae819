"""L2 quotas for tenants (cache salts): the division with the most hits, compared with one shared L2.

One shared L2 is usually as good, since one LRU gives memory to the tenants that use it. Quotas win where a tenant reads many
chunks and reuses few (a scan), and so evicts chunks that other tenants would have requested again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent_tools.errors import OutOfBoundsError, UnsupportedError, WorkloadError
from agent_tools.models import MB, Gain, SupportLevel, TokenCounts, Verdict
from agent_tools.models.config import DEFAULT_TENANT
from agent_tools.plain import points
from agent_tools.prediction.divided_capacity import divide
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.prediction.tenant_curves import COORDINATOR, QuotaEviction

from .modelled import MODEL_OFF, gain_in_points, predicted_gain, predicted_rate, server_setting
from .observation import Ints, Observation
from .quota_advice import TenantQuota, TenantQuotas
from .recommend import WORTH_ACTING
from .tenant_hits import TenantHits

FLOOR_OF_EQUAL_SHARE = 0.25
"""Default floor of each tenant's quota, as a share of an equal division. Traffic changes: a tenant without hits today must be
able to have hits tomorrow."""
NEEDS_ENFORCING = (
    "L2 does not enforce quotas now. To enforce them, give the L2 adapter an eviction block with IsolatedLRU (which deletes the"
    " chunks of every tenant without a quota), or use LMCache's coordinator"
)
CURVES_OFF = 0.02
"""Distance between curves and server model above which a note warns about the tokens of each tenant."""


def tenant_quotas(seen: Observation, *, budget_mb: float | None = None, floor_mb: float | None = None) -> TenantQuotas:
    """Return the quotas that give the window's requests the most hits, with a verdict on whether to set them.

    Each tenant gets its floor. A tenant gets more while more brings hits. The tokens come from exact curves of L2 alone. They
    are within 1.5 points of token hit rate of the server model if the quotas add up to three times L1 or more and no stores
    fail (measured on generated agents and scans). The gain comes from the server model, which includes the shared L1 and failed
    stores. Where that model does not cover the cache, the gain comes from the curves too.

    Args:
        seen: The observation. Its log must name tenants: the log of our server module does, LMCache's lookup-hash log does not.
        budget_mb: Sum of all quotas, MB. The default is the sum of the present quotas, else the size of L2.
        floor_mb: Smallest quota of each tenant, MB. The default is `FLOOR_OF_EQUAL_SHARE` of an equal division.

    Raises:
        UnsupportedError: The log does not name tenants, or the budget is unknown.
        WorkloadError: The window has no known request, or the bytes of a chunk are unknown.
        OutOfBoundsError: The budget is not a positive size, or it does not cover the floors.
    """
    chunk_mb = _chunk_mb(seen)
    quotas_now = _enforced(seen)
    hits = TenantHits.of(seen, quotas_now.eviction)
    tenants = [*hits.curves, *sorted({*(quotas_now.by_tenant_mb or {}), *seen.metrics.by_tenant} - hits.curves.keys())]
    budget = _budget(seen, quotas_now) if budget_mb is None else budget_mb
    floor = _floor(seen, len(tenants), budget, floor_mb)
    quotas = _divided(hits, tenants, budget / chunk_mb, floor / chunk_mb)
    return _advice(_Division(seen, hits, quotas_now, chunk_mb, budget, floor, quotas))


@dataclass(frozen=True)
class _Enforced:
    """How this cache enforces quotas."""

    eviction: QuotaEviction
    by_tenant_mb: Mapping[str, float] | None
    """Quotas in force, by salt. ``None`` without quotas."""
    unlisted_mb: float = 0.0
    """The limit of a tenant without a quota: 0 on a server, unlimited in a fleet."""
    possible: bool = True
    """Whether the cache would enforce quotas."""


@dataclass(frozen=True, eq=False)
class _Division:
    """A budget that is divided among the tenants of one observation."""

    seen: Observation
    hits: TenantHits
    now: _Enforced
    chunk_mb: float
    budget_mb: float
    floor_mb: float
    chunks: Mapping[str, float]
    """Quotas by salt, in chunks of the log."""


def _chunk_mb(seen: Observation) -> float:
    """Return the MB of one chunk of the log, after checking that the log has requests in the window and names tenants."""
    if seen.log is None or not seen.in_window.any():
        raise WorkloadError(
            f"cannot compute quotas for {seen.cache}, because the access log has no request in the window; start the server with"
            " --server-module agent_tools.server_module and wait for traffic"
        )
    if seen.log.tenant_names == ("",) and any(seen.metrics.by_tenant):
        raise UnsupportedError(
            f"the access log of {seen.cache} does not name its {len(seen.metrics.by_tenant)} tenants, because LMCache's"
            " lookup-hash log has no cache salts; start the server with --server-module agent_tools.server_module"
        )
    if seen.chunk_bytes is None:
        raise WorkloadError(
            f"cannot compute quotas for {seen.cache}: the size of a chunk is unknown until L1 holds chunks; wait for traffic"
        )
    return seen.chunk_bytes / MB


def _enforced(seen: Observation) -> _Enforced:
    named = seen.config.tenant_quotas_mb or {}
    quotas = {"" if tenant == DEFAULT_TENANT else tenant: quota for tenant, quota in named.items()} or None
    adapters = seen.config.l2_adapters or ()
    isolated = next((adapter for adapter in adapters if adapter.by_tenant), None)
    if isolated is None and seen.support["tenant_quotas_mb"].level is SupportLevel.LIVE:  # the coordinator enforces them
        return _Enforced(COORDINATOR, quotas, unlisted_mb=np.inf)
    block = next((adapter.eviction for adapter in (isolated, *adapters) if adapter and adapter.eviction), {})
    eviction = QuotaEviction(block.get("trigger_watermark", 0.8), block.get("eviction_ratio", 0.2))
    return _Enforced(eviction, quotas if isolated else None, possible=isolated is not None)


def _budget(seen: Observation, now: _Enforced) -> float:
    if now.by_tenant_mb:
        return sum(now.by_tenant_mb.values())
    sizes = [adapter.size_mb for adapter in seen.config.l2_adapters or ()]
    if not sizes or None in sizes:
        raise UnsupportedError(
            f"the budget for the tenants of {seen.cache} is unknown, because it has no L2 or an L2 without a declared size;"
            " give budget_mb"
        )
    return sum(size for size in sizes if size is not None)


def _floor(seen: Observation, tenants: int, budget_mb: float, floor_mb: float | None) -> float:
    if not 0 < budget_mb < np.inf:
        raise OutOfBoundsError(
            f"cannot divide {budget_mb:g} MB among the tenants of {seen.cache}; give a positive budget_mb. Nothing was changed"
        )
    equal = budget_mb / tenants
    floor = FLOOR_OF_EQUAL_SHARE * equal if floor_mb is None else floor_mb
    if not 0 <= floor <= equal * (1 + 1e-9):
        raise OutOfBoundsError(
            f"{budget_mb:g} MB do not cover {floor:g} MB for each of the {tenants} tenants of {seen.cache}: give a floor_mb"
            f" from 0 to {equal:g}, or a larger budget_mb. Nothing was changed"
        )
    return min(floor, equal)


def _divided(hits: TenantHits, tenants: Sequence[str], budget: float, floor: float) -> dict[str, float]:
    """Return each tenant's quota in chunks.

    The division works on the average used part of each quota, since only that part brings hits.
    """
    usable, nothing = hits.eviction.usable, np.zeros(1, np.int64)
    useful = [hits.curves[one].useful_hits(hits.eviction) if one in hits.curves else nothing for one in tenants]
    parts = divide(useful, [floor * usable] * len(tenants), budget * usable)
    return {tenant: part / usable for tenant, part in zip(tenants, parts, strict=True)}


def _advice(division: _Division) -> TenantQuotas:
    hits, now, budget, chunk_mb = division.hits, division.now, division.budget_mb, division.chunk_mb
    shared, best = hits.shared(budget / chunk_mb), hits.divided(division.chunks.__getitem__)
    equal = hits.divided(lambda _: budget / len(division.chunks) / chunk_mb)
    in_force = now.by_tenant_mb
    present = shared if in_force is None else hits.divided(lambda one: in_force.get(one, now.unlisted_mb) / chunk_mb)
    settings = _settings(division)
    gain = predicted_gain(division.seen, *settings) if settings else hits.gain(present, best)
    verdict, why = _verdict(division, gain, int((best - shared).sum()))
    return TenantQuotas(
        cache=division.seen.cache,
        window=division.seen.metrics.window,
        budget_mb=budget,
        floor_mb=division.floor_mb,
        spare_mb=max(round(budget - sum(division.chunks.values()) * chunk_mb, 6), 0.0),
        tenants=_rows(division, present, shared, best),
        measured=bool(division.seen.metrics.by_tenant),
        requested_tokens=hits.tokens(int(hits.asked.sum())),
        hit_tokens_shared=hits.tokens(int(shared.sum())),
        hit_tokens_equal=hits.tokens(int(equal.sum())),
        hit_tokens_quotas=hits.tokens(int(best.sum())),
        gain=gain,
        gain_over_shared=hits.gain(shared, best),
        verdict=verdict,
        why=why,
        notes=tuple(_notes(division, settings, int(best.sum()) / max(int(hits.asked.sum()), 1))),
    )


def _rows(division: _Division, present: Ints, shared: Ints, best: Ints) -> tuple[TenantQuota, ...]:
    hits, measured = division.hits, division.seen.metrics.by_tenant
    asked, got, of_shared, of_best = (hits.by_tenant(column) for column in (hits.asked, present, shared, best))
    requests = hits.by_tenant(np.ones_like(best))
    rows = []
    for tenant, chunks in division.chunks.items():
        curve = hits.curves[tenant].curve if tenant in hits.curves else None
        modelled = hits.tokens(got.get(tenant, 0))
        rows.append(
            TenantQuota(
                tenant=tenant,
                requests=requests.get(tenant, 0),
                requested_tokens=hits.tokens(asked.get(tenant, 0)),
                hit_tokens_now=measured.get(tenant, TokenCounts()).hit if measured else modelled,
                hit_tokens_shared=hits.tokens(of_shared.get(tenant, 0)),
                hit_tokens_quota=hits.tokens(of_best.get(tenant, 0)),
                hit_tokens_most=hits.tokens(int(curve.hit_chunks[-1])) if curve else 0,
                footprint_mb=curve.footprint * division.chunk_mb if curve else 0.0,
                quota_now_mb=(division.now.by_tenant_mb or {}).get(tenant),
                quota_mb=chunks * division.chunk_mb,
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.requested_tokens))


def _settings(division: _Division) -> tuple[ServerSetting, ServerSetting] | None:
    """Return the present and the recommended setting for the server model, or ``None`` if the model does not cover them."""
    seen, now = division.seen, division.now
    setting = server_setting(seen)
    if setting is None or not setting.l2_capacity_chunks or now.eviction is COORDINATOR:
        return None
    budget = division.budget_mb / division.chunk_mb
    shared = replace(setting, tenant_quotas=None, l2_capacity_chunks=budget, l2_evicts=True)
    return setting if now.by_tenant_mb else shared, replace(shared, tenant_quotas=dict(division.chunks))


def _notes(division: _Division, settings: tuple[ServerSetting, ServerSetting] | None, by_curves: float) -> Iterator[str]:
    seen, here = division.seen, server_setting(division.seen)
    measured = seen.metrics.tokens.hit_rate
    if not division.now.possible:
        yield NEEDS_ENFORCING
    if settings is not None and abs(by_curves - (modelled := predicted_rate(seen, settings[1]))) > CURVES_OFF:
        yield (
            f"For these quotas, the server model, which includes the shared L1 and failed stores, predicts a token hit rate of"
            f" {modelled:.1%}; the curves predict {by_curves:.1%}. The tokens of each tenant are off by the same amount"
        )
    if here is not None and measured is not None and abs(measured - (modelled := predicted_rate(seen, here))) > MODEL_OFF:
        yield (
            f"For the settings in force the model predicts a token hit rate of {modelled:.1%}, but the server counted"
            f" {measured:.1%}: do not rely on the gain"
        )
    yield from division.hits.log.remarks


def _verdict(division: _Division, gain: Gain, over_shared: int) -> tuple[Verdict, str]:
    """Return the verdict and its reason. The verdict is `act` if the lower end of the gain is worth a change.

    Args:
        division: The recommended quotas.
        gain: Their gain over the present setting.
        over_shared: Hits that the quotas gain over one shared L2, in chunks.
    """
    if len(division.chunks) == 1:
        return Verdict.DO_NOTHING, f"{division.seen.cache} has only one tenant, so there is nothing to divide"
    asked = int(division.hits.asked.sum())
    if not asked:
        return Verdict.NO_DATA, "No request in the window asked for a whole chunk; observe for longer"
    against = "one shared L2 of the same size" if division.now.by_tenant_mb is None else "the quotas in force"
    figures = f"These quotas change the token hit rate by {gain_in_points(gain)} against {against}"
    if gain.lower >= WORTH_ACTING:
        return Verdict.ACT, figures
    if division.now.by_tenant_mb is not None and over_shared <= -WORTH_ACTING * asked:
        return (
            Verdict.DO_NOTHING,
            f"{figures}; one shared L2 (policy LRU) would change it by {points(-over_shared / asked)} against these quotas",
        )
    return Verdict.DO_NOTHING, f"{figures}. That is too little to be worth a change"
