"""The verbs: everything that can be done with the caches of a registry, each in one async call.

The doors, tools and graphs above reach the rooms below through this class alone. Run its methods on the I/O loop (`io_loop`).
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial

import anyio
import anyio.to_thread

from .caches import observer
from .caches.observer import READ_EVERY
from .caches.registry import DEFAULT, Cache, Registry
from .caches.settings import CacheSettings, Settings
from .changes.actor import Actor
from .changes.read_back import not_in_force
from .deployments.base import Progress, silent
from .deployments.snapshot import metrics_between
from .errors import StalePlanError, UnsupportedError, WorkloadError
from .models import (
    Advice,
    Bounds,
    CacheConfig,
    CacheEntry,
    CacheMetrics,
    CacheOptimizationResult,
    ChangeOutcome,
    ChangeRecord,
    ChangeResult,
    ConfigUpdate,
    LMCacheStatus,
    PinResult,
    Plan,
    Support,
    Symptom,
    Tenant,
    Tenants,
    TenantUsage,
    TokenCounts,
    Verification,
    VerificationVerdict,
    WarmResult,
)
from .models.change import Baseline
from .prediction.forecast import Forecast
from .recommender.modelled import forecast_of, server_setting
from .recommender.observation import Observation
from .recommender.quota_advice import TenantQuotas
from .recommender.recommend import recommend
from .recommender.symptoms import diagnose
from .recommender.tenant_quotas import tenant_quotas
from .recommender.verify import verify
from .report.page import html_report
from .workload.access_log import lookups_since

TOP_ENTRIES = 10
"""Entries listed in a status."""


class Operations:
    """All operations on the caches of one registry.

    Methods that take a `cache` take its name in the registry. `window_seconds` is the length of a window that ends now: the call
    waits for what earlier readings do not cover, and ``None`` means everything since the cache process started. `progress` is
    called with one short sentence per step while a call waits.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.actor = Actor(registry.settings.state_folder)

    async def close(self) -> None:
        """Close all connections and stop embedded servers."""
        await self.registry.close()

    # ---- read ----

    async def caches(self) -> dict[str, CacheSettings]:
        """Return every name a caller may use with the operator's settings for it. Starts nothing and asks nothing."""
        return {name: self.registry.settings_of(name) for name in self.registry.names}

    async def servers(self, cache: str) -> list[str]:
        """Return the names of a fleet's servers as its coordinator knows them now. For a single server, return its own name."""
        return await self.registry.servers(cache)

    async def settings(self, cache: str = DEFAULT) -> CacheConfig:
        """Return the settings in force."""
        return await (await self.registry.find(cache)).deployment.config()

    async def config(self, cache: str = DEFAULT) -> tuple[CacheConfig, Mapping[str, Support]]:
        """Return the settings in force, and for each setting whether and how it can be changed."""
        deployment = (await self.registry.find(cache)).deployment
        config, support = await asyncio.gather(deployment.config(), deployment.support())
        return config, support

    async def version(self, cache: str = DEFAULT) -> str | None:
        """Return LMCache's version, or ``None`` if the cache does not report it."""
        return await (await self.registry.find(cache)).deployment.version()

    async def status(self, cache: str = DEFAULT) -> LMCacheStatus:
        """Return what the cache is, its settings, its health, and its figures since its process started."""
        named = await self.registry.find(cache)
        seen, (top_entries, no_entries), version = await asyncio.gather(
            self._observe(named), _top_entries(named), named.deployment.version()
        )
        # In a thread: the search through a long log must not hold up other operations.
        symptoms = await anyio.to_thread.run_sync(diagnose, seen)
        return LMCacheStatus(
            timestamp=seen.metrics.window.end,
            instance_id=named.history.latest.instance_id if named.history.latest else None,
            metrics=seen.metrics,
            config=seen.config,
            lmcache_version=version,
            backend=named.deployment.backend,
            health=seen.health,
            top_entries=top_entries,
            symptoms=tuple(symptom.code.value for symptom in symptoms),
            notes={} if no_entries is None else {"top_entries": no_entries},
        )

    async def metrics(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> CacheMetrics:
        """Return the figures of a window."""
        named = await self.registry.find(cache)
        return metrics_between(*await observer.window(named, window_seconds, progress))

    async def tenants(self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent) -> Tenants:
        """Return what each tenant (cache salt) asked for and was served in a window, what it occupies, and its quota."""
        named = await self.registry.find(cache)
        readings, usage = await asyncio.gather(observer.window(named, window_seconds, progress), named.deployment.tenants())
        metrics = metrics_between(*readings)
        tenants = {
            salt: Tenant(tokens=metrics.by_tenant.get(salt, TokenCounts()), usage=usage.get(salt, TenantUsage()))
            for salt in sorted({*usage, *metrics.by_tenant})
        }
        return Tenants(window=metrics.window, tenants=tenants)

    async def entries(self, cache: str = DEFAULT, limit: int = 20) -> Sequence[CacheEntry]:
        """Return the most used entries, at most `limit`.

        Raises:
            UnsupportedError: This cache cannot list its entries; the message says what would make it possible.
        """
        return await (await self.registry.find(cache)).deployment.entries(limit)

    async def changes(self, cache: str | None = None) -> list[ChangeRecord]:
        """Return the change log of one cache or of all caches, oldest first."""
        if cache is not None:
            await self.registry.find(cache)
        return await anyio.to_thread.run_sync(self.actor.log.records, cache)

    # ---- advise ----

    async def diagnose(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> tuple[Symptom, ...]:
        """Return what is wrong in a window, worst first."""
        named = await self.registry.find(cache)
        seen = await self._observe(named, await observer.window(named, window_seconds, progress))
        return await anyio.to_thread.run_sync(diagnose, seen)

    async def recommend(
        self,
        cache: str = DEFAULT,
        window_seconds: float | None = None,
        bounds: Bounds | None = None,
        progress: Progress = silent,
        since: float | None = None,
    ) -> Advice:
        """Return what would make the cache better, or why nothing would.

        Args:
            cache: Name of the cache.
            window_seconds: Length of the window.
            bounds: Narrows the operator's bounds.
            progress: Called while waiting.
            since: Start the window at this Unix time instead, if this process has a reading from then.
        """
        named = await self.registry.find(cache)
        seen = await self._observe(named, await observer.window(named, window_seconds, progress, since), bounds)
        # In a thread: the search takes seconds on a long log.
        return await anyio.to_thread.run_sync(recommend, seen)

    async def forecast(
        self, cache: str = DEFAULT, instead: ConfigUpdate | None = None, sizes_mb: Sequence[float] | None = None
    ) -> tuple[Forecast, CacheMetrics]:
        """Return what L1 sizes would give on the requests since L1 was last empty, and what was measured since the start.

        Args:
            cache: Name of the cache.
            instead: Settings to assume in place of those in force.
            sizes_mb: L1 sizes, MB; by default a grid chosen from the log.

        Raises:
            UnsupportedError: There is no access log, so nothing can be predicted.
            WorkloadError: The log, or the settings, cannot be predicted from.
        """
        named = await self.registry.find(cache)
        seen = await self._observe(named)
        if seen.log is None:
            raise UnsupportedError(
                f"nothing can be predicted for {cache} without an access log; of an `lmcache server`: start it with"
                " --server-module agent_tools.server_module, or with --lookup-hash-log-dir and name that folder as access_log in"
                " caches.toml, or wait for the first lookup"
            )
        return await anyio.to_thread.run_sync(forecast_of, seen, instead, sizes_mb), seen.metrics

    async def tenant_quotas(
        self, cache: str = DEFAULT, window_seconds: float | None = None, budget_mb: float | None = None
    ) -> TenantQuotas:
        """Return the L2 quotas that would give the most hits within a budget, and whether one shared L2 does as well.

        Args:
            cache: Name of the cache.
            window_seconds: Length of the window.
            budget_mb: What the quotas may add up to, MB; by default what they add up to now, else the size of L2.

        Raises:
            UnsupportedError: The access log does not separate tenants, or there is no budget to divide.
        """
        named = await self.registry.find(cache)
        seen = await self._observe(named, await observer.window(named, window_seconds))
        return await anyio.to_thread.run_sync(partial(tenant_quotas, seen, budget_mb=budget_mb))

    async def report(self, cache: str = DEFAULT) -> str:
        """Return one self-contained HTML page: status, advice with its evidence, pictures and the history of changes."""
        named = await self.registry.find(cache)
        seen = await self._observe(named)
        return await anyio.to_thread.run_sync(_page, seen, await self.changes(cache))

    # ---- change settings ----

    async def plan(
        self, cache: str, update: ConfigUpdate, reason: str, bounds: Bounds | None = None, fingerprint: str | None = None
    ) -> Plan:
        """Return what an update would change and cost. Changes nothing. See `Actor.plan`.

        Args:
            cache: Name of the cache.
            update: The settings to change.
            reason: Why; goes into the change log.
            bounds: Narrows the operator's bounds.
            fingerprint: Fingerprint of an earlier plan that this plan must equal.

        Raises:
            StalePlanError: The cache changed since the earlier plan was made, or that plan was for other settings.
        """
        plan = await self.actor.plan(await self.registry.find(cache), update, reason, bounds)
        if fingerprint not in (None, plan.fingerprint):
            raise StalePlanError(
                f"{cache} is not, or no longer, as the plan with fingerprint {fingerprint} found it, or that plan is for other"
                " settings; read the cache and plan anew. Nothing was changed"
            )
        return plan

    async def apply(self, plan: Plan, actor: str, progress: Progress = silent) -> ChangeResult:
        """Carry out a plan. See `Actor.apply`."""
        return await self.actor.apply(await self.registry.find(plan.cache), plan, actor, progress)

    async def undo(self, cache: str, change_id: str, actor: str, progress: Progress = silent) -> ChangeResult:
        """Undo a change by its id. See `Actor.undo`."""
        return await self.actor.undo(await self.registry.find(cache), change_id, actor, progress)

    async def check_cooldown(self, cache: str) -> None:
        """Raise `CooldownError` while the last change of the cache is too recent."""
        await self.actor.check_cooldown(await self.registry.find(cache))

    # ---- verify a change ----

    async def baseline(self, cache: str, window_seconds: float | None = None, progress: Progress = silent) -> Baseline:
        """Return what the cache did in a window, to be compared with what it does after a change."""
        named = await self.registry.find(cache)
        readings = await observer.window(named, window_seconds, progress)
        since = metrics_between(*readings).window.start.timestamp()
        return observer.baseline(named, readings, await named.deployment.access_log(since=since))

    async def verify(self, change: ChangeResult, before: Baseline, patience: float, progress: Progress = silent) -> Verification:
        """Watch the cache until it has been asked for as many tokens as before the change, and compare.

        Args:
            change: The applied change.
            before: What the cache did before the change.
            patience: Longest wait, seconds. If it runs out, the verdict may be "undecided".
            progress: Called while waiting.
        """
        named = await self.registry.find(change.plan.cache)
        start = await observer.read(named)
        wanted, deadline = before.metrics.tokens.requested, time.monotonic() + patience
        while time.monotonic() < deadline:
            served = metrics_between(start, await observer.watch(named)).tokens.requested
            progress(f"verifying: {served} of {wanted} tokens seen since the change")
            if served >= wanted > 0:
                break
            await anyio.sleep(READ_EVERY)
        readings = (start, await observer.read(named))
        seen = await self._observe(named, readings)
        in_force = not_in_force(change.plan.changes, seen.config) is None
        old = server_setting(seen, {one.setting: one.old for one in change.plan.changes})
        after = observer.baseline(named, readings, await lookups_since(seen.log, start.taken_at))
        judge = partial(verify, before, after, in_force=in_force, seen=seen, old=old)
        verification = await anyio.to_thread.run_sync(judge)
        outcome = ChangeOutcome.VERIFIED if verification.verdict is VerificationVerdict.BETTER else ChangeOutcome.KEPT_UNVERIFIED
        await self.actor.note(change.change_id, outcome, verification.why)
        return verification

    # ---- change what is stored ----

    async def optimize(
        self, cache: str, target_utilization_percent: float, actor: str, reason: str = ""
    ) -> CacheOptimizationResult:
        """Remove least recently used entries until at most `target_utilization_percent` of L1 is used."""
        named = await self.registry.find(cache)

        async def trim() -> None:
            total = (await named.deployment.snapshot()).l1_total_bytes
            await named.deployment.trim(int(total * target_utilization_percent / 100))

        return await self.actor.drop(named, "optimize", actor, reason, trim)

    async def clear(self, cache: str, actor: str, reason: str = "") -> CacheOptimizationResult:
        """Remove everything from L1 except what requests hold locked. L2 is not touched."""
        named = await self.registry.find(cache)
        return await self.actor.drop(named, "clear", actor, reason, named.deployment.clear)

    async def delete_chunks(
        self, cache: str, model: str, chunk_hashes: Sequence[str], tenant: str, actor: str
    ) -> CacheOptimizationResult:
        """Remove chunks from L1 by their hash."""
        named = await self.registry.find(cache)

        async def delete() -> None:
            await named.deployment.delete(model, chunk_hashes, tenant)

        return await self.actor.drop(named, "delete", actor, f"{len(chunk_hashes)} chunks of {model}", delete)

    async def delete_prefix(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str
    ) -> CacheOptimizationResult:
        """Remove all chunks of a prompt prefix, given as token ids."""
        named = await self.registry.find(cache)
        deleted = 0

        async def delete() -> None:
            nonlocal deleted
            deleted = await named.deployment.delete_prefix(model, tokens, tenant)

        dropped = await self.actor.drop(named, "delete", actor, reason, delete)
        return dropped.model_copy(update={"message": f"{deleted} objects of the prefix were deleted; in L1: {dropped.message}"})

    async def warm(self, cache: str, model: str, tokens: Sequence[int], tenant: str = "") -> WarmResult:
        """Load a known prompt prefix from L2 into L1."""
        return await (await self.registry.find(cache)).deployment.warm(model, tokens, tenant)

    async def pin(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str, *, pinned: bool = True
    ) -> PinResult:
        """Protect a prompt prefix from eviction, or with ``pinned=False`` end the protection. Recorded in the change log."""
        named = await self.registry.find(cache)
        verb = "pin" if pinned else "unpin"

        async def pin() -> int:
            return await named.deployment.pin(model, tokens, tenant, pinned=pinned)

        chunks, record = await self.actor.carry_out(named, verb, actor, reason, pin)
        return PinResult(chunks=chunks, change_id=record.change_id, message=f"{verb}ned {chunks} chunks of {model}")

    async def _observe(
        self, cache: Cache, readings: observer.Readings | None = None, bounds: Bounds | None = None
    ) -> Observation:
        """Observe the cache; see `observer.observe`. Lookups before our last clear are left out."""
        cleared = await anyio.to_thread.run_sync(self.actor.log.last_clear, cache.name)
        return await observer.observe(cache, cleared.timestamp() if cleared else None, readings, bounds)


async def _top_entries(cache: Cache) -> tuple[tuple[CacheEntry, ...] | None, str | None]:
    """Return the most used entries, or why they are unknown."""
    try:
        return tuple(await cache.deployment.entries(TOP_ENTRIES)), None
    except UnsupportedError as error:
        return None, str(error)


def _page(seen: Observation, changes: Sequence[ChangeRecord]) -> str:
    """Return the report of one observation. Without a usable access log the report leaves out the predictions."""
    try:
        forecast = None if seen.log is None else forecast_of(seen)
    except WorkloadError:
        forecast = None
    return html_report(recommend(seen), seen.metrics, forecast=forecast, changes=changes)


@cache
def shared_operations() -> Operations:
    """Return the operations on the operator's own caches. One per process, so an embedded server is shared too."""
    return Operations(Registry(Settings.load()))
