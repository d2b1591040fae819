"""The verbs: all that can be done with the caches of a directory, async, each in one call.

The only stair between the doors (tools, graphs, command line) and the rest. Run them on the I/O loop (`io_loop`).
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import anyio
import anyio.to_thread

from .caches.history import merged, requests_digest
from .caches.registry import DEFAULT, Cache, Registry
from .caches.settings import CacheSettings, Settings
from .changes.read_back import not_in_force
from .contents import Contents
from .deployments.base import Progress
from .deployments.snapshot import Snapshot, metrics_between
from .errors import StalePlanError, UnsupportedError, WorkloadError
from .models import (
    Advice,
    Bounds,
    CacheConfig,
    CacheEntry,
    CacheMetrics,
    ChangeOutcome,
    ChangeRecord,
    ChangeResult,
    ConfigUpdate,
    LMCacheStatus,
    Plan,
    Support,
    Symptom,
    Tenant,
    Tenants,
    TenantUsage,
    TokenCounts,
    Verification,
    VerificationVerdict,
)
from .models.change import Baseline
from .prediction.cost import kv_size, measured_economics
from .prediction.forecast import Forecast
from .recommender.modelled import forecast_of, server_setting
from .recommender.observation import Observation
from .recommender.quota_advice import TenantQuotas
from .recommender.recommend import recommend
from .recommender.symptoms import diagnose
from .recommender.tenant_quotas import tenant_quotas
from .recommender.verify import verify
from .report.page import html_report
from .serving.engine_speed import fitted_speed
from .serving.vllm_metrics import EngineReading
from .workload.access_log import AccessLog, lookups_since

READ_EVERY = 0.45
"""Seconds between readings while a window is observed; no divisor of the server's one-second tick, whose moment they reveal."""
_Readings = tuple[Snapshot | None, Snapshot]
"""The first of a window, or ``None`` for the start of the process; and the last."""
TOP_ENTRIES = 10
"""Entries listed in a status."""


def silent(_: str) -> None:
    """No progress is wanted."""


class Operations(Contents):
    """All operations on the caches of one directory."""

    async def close(self) -> None:
        """Close all connections; stop embedded servers."""
        await self.registry.close()

    # ---- reading ----

    async def caches(self) -> dict[str, CacheSettings]:
        """Every name a caller may use, with what the operator set for it; nothing is started or asked."""
        return {name: self.registry.settings_of(name) for name in self.registry.names}

    async def servers(self, cache: str) -> list[str]:
        """The names of all servers of a fleet, as its coordinator knows them now; that of the cache itself if it is none."""
        return await self.registry.servers(cache)

    async def settings(self, cache: str = DEFAULT) -> CacheConfig:
        """The settings in force."""
        return await (await self.registry.find(cache)).deployment.config()

    async def status(self, cache: str = DEFAULT) -> LMCacheStatus:
        """What the cache is, how it is set, and its figures since its process started."""
        named = await self.registry.find(cache)
        seen, (top_entries, why_none), version = await asyncio.gather(
            self._observe(named), _top_entries(named), named.deployment.version()
        )
        # In a thread, since a log is searched: other operations go on meanwhile.
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
            notes={} if why_none is None else {"top_entries": why_none},
        )

    async def metrics(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> CacheMetrics:
        """The figures of a window ending now.

        Args:
            cache: Its name.
            window_seconds: How long a window; waits for what earlier readings do not cover. ``None``: since the process started.
            progress: Told while waiting.
        """
        before, after = await self._window(await self.registry.find(cache), window_seconds, progress)
        return metrics_between(before, after)

    async def config(self, cache: str = DEFAULT) -> tuple[CacheConfig, Mapping[str, Support]]:
        """The settings in force, and for each whether and how it can be changed."""
        deployment = (await self.registry.find(cache)).deployment
        config, support = await asyncio.gather(deployment.config(), deployment.support())
        return config, support

    async def recommend(
        self,
        cache: str = DEFAULT,
        window_seconds: float | None = None,
        bounds: Bounds | None = None,
        progress: Progress = silent,
        since: float | None = None,
    ) -> Advice:
        """What would make the cache better, or why nothing would, from the window and the access log of its requests.

        Args:
            cache: Its name.
            window_seconds: As for `metrics`.
            bounds: Narrows the operator's bounds.
            progress: Told while waiting.
            since: Start the window at this Unix time instead, if this process has a reading of then.
        """
        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds, progress, since), bounds)
        # The search takes seconds on a long log; other operations go on meanwhile.
        return await anyio.to_thread.run_sync(recommend, seen)

    async def diagnose(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> tuple[Symptom, ...]:
        """What is wrong, worst first, from the window (as for `metrics`) and the access log of its requests."""
        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds, progress), None)
        return await anyio.to_thread.run_sync(diagnose, seen)

    async def forecast(
        self, cache: str = DEFAULT, instead: ConfigUpdate | None = None, sizes_mb: Sequence[float] | None = None
    ) -> tuple[Forecast, CacheMetrics]:
        """What L1 sizes would give on the requests since L1 was last empty, and what was measured since the start.

        Args:
            cache: Its name.
            instead: Settings to take in place of those in force.
            sizes_mb: L1 sizes, MB; a grid from the log by default.

        Raises:
            UnsupportedError: There is no access log, without which nothing can be predicted.
            WorkloadError: The log cannot be predicted from, or not for such settings.
        """
        named = await self.registry.find(cache)
        seen = await self._observe(named)
        if seen.log is None:
            raise UnsupportedError(
                f"nothing can be predicted for {cache} without an access log; of an `lmcache server`: start it with"
                " --server-module agent_tools.server_module, or with --lookup-hash-log-dir and name that folder as access_log in"
                " the directory, or wait for the first lookup"
            )
        return await anyio.to_thread.run_sync(forecast_of, seen, instead, sizes_mb), seen.metrics

    async def tenants(self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent) -> Tenants:
        """What each tenant (cache salt) asked for and got in the window (as for `metrics`), what it occupies, and its quota."""
        named = await self.registry.find(cache)
        (before, after), usage = await asyncio.gather(self._window(named, window_seconds, progress), named.deployment.tenants())
        metrics = metrics_between(before, after)
        salts = sorted({*usage, *metrics.by_tenant})
        tenants = {
            salt: Tenant(tokens=metrics.by_tenant.get(salt, TokenCounts()), usage=usage.get(salt, TenantUsage()))
            for salt in salts
        }
        return Tenants(window=metrics.window, tenants=tenants)

    async def tenant_quotas(
        self, cache: str = DEFAULT, window_seconds: float | None = None, budget_mb: float | None = None
    ) -> TenantQuotas:
        """The L2 quotas that would give the most hits within a budget, and whether one shared L2 would do as well.

        Args:
            cache: Its name.
            window_seconds: As for `metrics`.
            budget_mb: What the quotas may come to; by default what they come to now, else the size of L2.

        Raises:
            UnsupportedError: The access log does not tell tenants apart, or nothing says what may be divided.
        """
        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds, silent))
        return await anyio.to_thread.run_sync(partial(tenant_quotas, seen, budget_mb=budget_mb))

    async def report(self, cache: str = DEFAULT) -> str:
        """One self-contained HTML page: status now, advice with its evidence, pictures, history of changes."""
        named = await self.registry.find(cache)
        seen = await self._observe(named)
        return await anyio.to_thread.run_sync(_page, seen, await self.changes(cache))

    async def changes(self, cache: str | None = None) -> list[ChangeRecord]:
        """The change log, oldest first, of one cache or of all."""
        if cache is not None:
            await self.registry.find(cache)
        return await anyio.to_thread.run_sync(self.actor.log.records, cache)

    # ---- acting ----

    async def plan(
        self, cache: str, update: ConfigUpdate, reason: str, bounds: Bounds | None = None, fingerprint: str | None = None
    ) -> Plan:
        """What an update would change and cost; nothing is changed. See `Actor.plan`.

        Args:
            cache: Its name.
            update: How it is to be set.
            reason: Why.
            bounds: Narrows the operator's bounds.
            fingerprint: Of an earlier plan, which this one is to equal.

        Raises:
            StalePlanError: The cache is no longer as it was when the earlier plan was made, or that one was for other settings.
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
        """Take back a change by its id. See `Actor.undo`."""
        return await self.actor.undo(await self.registry.find(cache), change_id, actor, progress)

    async def check_cooldown(self, cache: str) -> None:
        """Raise `CooldownError` while the last change of the cache is too recent."""
        await self.actor.check_cooldown(await self.registry.find(cache))

    # ---- judging ----

    async def baseline(self, cache: str, window_seconds: float | None = None, progress: Progress = silent) -> Baseline:
        """What the cache did in a window ending now (as for `metrics`), to be compared with what it does later."""
        named = await self.registry.find(cache)
        start, end = await self._window(named, window_seconds, progress)
        since = metrics_between(start, end).window.start.timestamp()
        return _baseline(named, start, end, await named.deployment.access_log(since=since))

    async def verify(self, change: ChangeResult, before: Baseline, patience: float, progress: Progress = silent) -> Verification:
        """Watch the cache until it has served as many tokens as before the change, and compare.

        Args:
            change: The applied change.
            before: What the cache did before it.
            patience: At most so many seconds; the verdict may then be "undecided".
            progress: Told while waiting.
        """
        named = await self.registry.find(change.plan.cache)
        start = await self._read(named)
        wanted, deadline = before.metrics.tokens.requested, time.monotonic() + patience
        while time.monotonic() < deadline:
            served = metrics_between(start, await self._watch(named)).tokens.requested
            progress(f"verifying: {served} of {wanted} tokens seen since the change")
            if served >= wanted > 0:
                break
            await anyio.sleep(READ_EVERY)
        end = await self._read(named)
        seen = await self._observe(named, (start, end), None)
        in_force = not_in_force(change.plan.changes, seen.config) is None
        old = server_setting(seen, {one.setting: one.old for one in change.plan.changes})
        log = await lookups_since(seen.log, start.taken_at)
        judge = partial(verify, before, _baseline(named, start, end, log), in_force=in_force, seen=seen, old=old)
        verification = await anyio.to_thread.run_sync(judge)
        outcome = ChangeOutcome.VERIFIED if verification.verdict is VerificationVerdict.BETTER else ChangeOutcome.KEPT_UNVERIFIED
        await self.actor.note(change.change_id, outcome, verification.why)
        return verification

    # ---- parts ----

    async def _observe(self, cache: Cache, window: _Readings | None = None, bounds: Bounds | None = None) -> Observation:
        """The cache as it was in a window; all since its process started by default."""
        log, (before, after), config, support = await asyncio.gather(
            self._lookups(cache), self._readings(cache, window), cache.deployment.config(), cache.deployment.support()
        )
        log = await lookups_since(log, after.process_start)
        metrics, speed = metrics_between(before, after), fitted_speed(cache.history.engine_readings())
        return Observation(
            cache=cache.name,
            metrics=metrics,
            config=config,
            support=support,
            bounds=cache.settings.bounds.narrowed(bounds),
            health=after.health,
            polls=cache.history.polls(),
            economics=cache.settings.economics or measured_economics(speed, kv_size(metrics, log)),
            engine_speed=speed,
            log=log,
        )

    async def _readings(self, cache: Cache, window: _Readings | None) -> _Readings:
        return window or (None, await self._read(cache))

    async def _lookups(self, cache: Cache) -> AccessLog | None:
        """What was asked since we last cleared the cache, or all that is known."""
        cleared = await anyio.to_thread.run_sync(self.actor.log.last_clear, cache.name)
        return await cache.deployment.access_log(since=cleared.timestamp() if cleared else None)

    async def _window(self, cache: Cache, seconds: float | None, progress: Progress, since: float | None = None) -> _Readings:
        """(first reading, or ``None`` for the start of the process; last reading) of a window ending now.

        It starts at `since`, a Unix time, if a reading of then is kept; else it spans `seconds`, waiting for what is not covered.
        """
        after = await self._read(cache)
        kept = cache.history.at_or_before(since) if since is not None else None
        if kept is not None or seconds is None:
            return kept, after
        covered = cache.history.at_or_before(after.taken_at - seconds)
        if covered is not None:
            return covered, after
        start = cache.history.first_of_process(after)
        while (left := start.taken_at + seconds - time.time()) > 0:
            progress(f"observing {cache.name}: {left:.0f} s left")
            await anyio.sleep(min(left, READ_EVERY))
            after = await self._read(cache)
        return start, after

    async def _watch(self, cache: Cache) -> Snapshot:
        """A reading not older than `READ_EVERY`: one for all that wait on this cache."""
        async with cache.watched:
            latest = cache.history.latest
            # This machine's clock may have been set back since then.
            fresh = latest is not None and abs(time.time() - latest.taken_at) < READ_EVERY
            return latest if latest is not None and fresh else await self._read(cache)

    async def _read(self, cache: Cache) -> Snapshot:
        snapshot, engine = await asyncio.gather(cache.deployment.snapshot(), _engine_reading(cache))
        if cache.engine is not None:
            snapshot = replace(snapshot, engine=engine, no_engine=cache.engine.trouble or "")
        cache.history.add(snapshot)
        return snapshot


async def _engine_reading(cache: Cache) -> EngineReading | None:
    return None if cache.engine is None else await cache.engine.reading()


async def _top_entries(cache: Cache) -> tuple[tuple[CacheEntry, ...] | None, str | None]:
    """The most used entries, or why they are not known."""
    try:
        return tuple(await cache.deployment.entries(TOP_ENTRIES)), None
    except UnsupportedError as error:
        return None, str(error)


def _baseline(cache: Cache, before: Snapshot | None, after: Snapshot, log: AccessLog | None) -> Baseline:
    """What was read of a window; `log` is of its requests."""
    metrics = metrics_between(before, after)
    return Baseline(
        metrics=metrics,
        intervals=merged(cache.history.intervals(metrics.window.start.timestamp(), metrics.window.end.timestamp())),
        requests_digest=None if log is None else requests_digest(log),
    )


def _page(seen: Observation, changes: Sequence[ChangeRecord]) -> str:
    """The report of one observation; where its log is none that can be predicted from, it says less."""
    try:
        forecast = None if seen.log is None else forecast_of(seen)
    except WorkloadError:
        forecast = None
    return html_report(recommend(seen), seen.metrics, forecast=forecast, changes=changes)


@cache
def shared_operations() -> Operations:
    """The operations on the operator's own directory, made once per process; an embedded server is then shared too."""
    return Operations(Registry(Settings.load()))
