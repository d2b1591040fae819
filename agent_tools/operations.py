"""The verbs: everything that can be done with the caches of a registry, each in one async call.

The doors, tools and graphs above reach the rooms below through this class alone. Run its methods on the I/O loop (`io_loop`).
"""

import asyncio
import contextlib
import copy
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from .caches import observer
from .caches.kubernetes import drift
from .caches.observer import READ_EVERY
from .caches.registry import DEFAULT, Cache, Registry
from .caches.settings import CacheSettings, Settings
from .changes.actor import Actor
from .changes.permission import check_permitted, check_right
from .changes.read_back import not_in_force
from .deployments.base import Progress, silent
from .deployments.snapshot import metrics_between
from .errors import (
    LMCacheToolError,
    NothingToChangeError,
    OutcomeUnknownError,
    SettingsError,
    StalePlanError,
    UnknownChangeError,
    UnsupportedError,
    WorkloadError,
)
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
    Window,
)
from .models.change import Baseline
from .models.rights import Right
from .models.start_configuration import Drift, StartConfiguration, StartForm
from .plain import plain
from .recommender.observation import Observation
from .recommender.symptoms import diagnose
from .recommender.symptoms.rule import ENOUGH_LOOKUPS, enough
from .workload.access_log import lookups_since

# A verb that predicts, verifies or draws imports what it needs when it is called, so that `status` starts fast.
if TYPE_CHECKING:
    from .caches.kubernetes import Resource
    from .prediction.forecast import Forecast
    from .recommender.quota_advice import TenantQuotas

TOP_ENTRIES = 10
"""Entries listed in a status."""
NOT_NOTED = "The change log does not hold this verdict, since the caller's token does not give the right to change."
MEDDLED = "Somebody changed other settings while the change was being verified, so nothing is known; verify it again"
LOOK_EVERY = 5.0
"""Seconds between two looks at a trial."""
NO_LOG_READ = "judged by counters alone; `diagnose` also reads the access log"

LOG_READERS = 4
"""Threads that read the change log at once, so that many agents need no more of them."""


class Operations:
    """All operations on the caches of one registry.

    Methods that take a `cache` take its name in the registry. `window_seconds` is the length of a window that ends now: the call
    waits for what earlier readings do not cover, and ``None`` means everything since the cache process started. `progress` is
    called with one short sentence per step while a call waits.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.actor = Actor(registry.settings.state_folder)
        self._log_readers = anyio.CapacityLimiter(LOG_READERS)
        self.approved_by: str | None = None
        """Who approved the changes made with this; ``None`` if nobody was asked. See `approved`."""
        self.caller: str | None = None
        """Who asks, as a door authenticated them; see `called_by`."""
        self.last_advice: dict[str, Advice] = {}
        """Cache -> the last advice that was given, for our own metrics. Shared with the copies for callers and approvers."""
        self.program: str | None = None
        """The program that asks, as it calls itself."""

    def approved(self, by: str | None) -> "Operations":
        """Return the same operations for changes that a person approved.

        Only a host that asked a person may call this. `by` is the name that the host authenticated; ``None`` if nobody was asked.
        """
        approved = copy.copy(self)
        approved.approved_by = by
        return approved

    def called_by(self, caller: str | None, program: str | None = None) -> "Operations":
        """Return the same operations for one caller: with the rights of their token, and their name in the change log.

        Args:
            caller: The name that a door authenticated. A caller who is named already stays the caller, so that nobody gets the
                rights of another by naming them.
            program: What the caller's program calls itself, e.g. the name of an MCP client. It is recorded, never trusted.
        """
        called = copy.copy(self)
        called.caller, called.program = self.caller or caller, program or self.program
        return called

    async def close(self) -> None:
        """Close all connections and stop embedded servers."""
        await self.registry.close()

    # ---- read ----

    async def caches(self) -> dict[str, CacheSettings]:
        """Return every name a caller may use with the operator's settings for it. Starts nothing and asks nothing."""
        registry = self.registry
        return await anyio.to_thread.run_sync(lambda: {name: registry.settings_of(name) for name in registry.names})

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

    async def export(self, cache: str, form: StartForm) -> StartConfiguration:
        """Return the settings in force as start-up configuration, so that they stay after a restart.

        Raises:
            UnsupportedError: This kind of cache does not start from that form; the message names the forms.
        """
        from .caches.start_configuration import start_configuration

        named = await self.registry.find(cache)
        config = await named.deployment.config()
        command = await named.deployment.restart_command(ConfigUpdate(max_size_mb=config.max_size_mb))
        resource = await anyio.to_thread.run_sync(_resource, named)
        return start_configuration(named.name, named.settings.kind, config, command, form, resource)

    async def drift(self, cache: str = DEFAULT) -> tuple[Drift, ...]:
        """Return where the cache's Kubernetes resource differs from the settings in force. Nothing if it has none."""
        named = await self.registry.find(cache)
        resource = await anyio.to_thread.run_sync(_resource, named)
        return () if resource is None else drift(resource, await named.deployment.config())

    async def version(self, cache: str = DEFAULT) -> str | None:
        """Return LMCache's version, or ``None`` if the cache does not report it."""
        return await (await self.registry.find(cache)).deployment.version()

    async def status(self, cache: str = DEFAULT, *, read_log: bool = True) -> LMCacheStatus:
        """Return what the cache is, its settings, its health, and its figures since its process started.

        Without `read_log` the symptoms rest on counters and histograms alone, and `notes` say so: a long access log takes long to
        read, and the loops over it take long to load.
        """
        named = await self.registry.find(cache)
        readings = await observer.recent(named, await self._changed(named))
        seen, (top_entries, no_entries), version = await asyncio.gather(
            self._observe(named, readings, read_log=read_log), _top_entries(named), named.deployment.version()
        )
        # In a thread: the search through a long log must not hold up other operations.
        symptoms = await anyio.to_thread.run_sync(diagnose, seen)
        return LMCacheStatus(
            timestamp=seen.metrics.window.end,
            instance_id=readings[1].instance_id,
            metrics=metrics_between(None, readings[1]),
            config=seen.config,
            lmcache_version=version,
            backend=named.deployment.backend,
            health=seen.health,
            top_entries=top_entries,
            symptoms=tuple(symptom.code.value for symptom in symptoms),
            symptoms_window=seen.metrics.window,
            notes=({} if named.history.latest is None else dict(named.history.latest.notes))
            | await _drift_note(named, seen.config)
            | ({} if no_entries is None else {"top_entries": no_entries})
            | ({} if read_log else {"symptoms": NO_LOG_READ}),
        )

    async def metrics(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> CacheMetrics:
        """Return the figures of a window, or without one the totals since the cache process started."""
        named = await self.registry.find(cache)
        return metrics_between(*await self._figures(named, window_seconds, progress))

    async def tenants(self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent) -> Tenants:
        """Return what each tenant (cache salt) asked for and was served in a window, what it occupies, and its quota."""
        named = await self.registry.find(cache)
        readings, usage = await asyncio.gather(self._figures(named, window_seconds, progress), named.deployment.tenants())
        metrics = metrics_between(*readings)
        tenants = {
            salt: Tenant(tokens=metrics.by_tenant.get(salt, TokenCounts()), usage=usage.get(salt, TenantUsage()))
            for salt in sorted({*usage, *metrics.by_tenant})
        }
        return Tenants(window=metrics.window, tenants=tenants, more=metrics.more_tenants)

    async def entries(self, cache: str = DEFAULT, limit: int = 20) -> Sequence[CacheEntry]:
        """Return the most used entries, at most `limit`.

        Raises:
            UnsupportedError: This cache cannot list its entries; the message says what would make it possible.
        """
        return await (await self.registry.find(cache)).deployment.entries(limit)

    async def changes(self, cache: str | None = None) -> list[ChangeRecord]:
        """Return the change log of one cache or of all caches, oldest first. See `log_problems` for lines that cannot be read."""
        latest = None if cache is None else (await self.registry.find(cache)).history.latest
        return await anyio.to_thread.run_sync(self.actor.log.records, cache, latest.server if latest else None)

    async def log_problems(self) -> list[str]:
        """Name the lines of the change log that cannot be read, or only in part, or are dated in the future."""
        return await anyio.to_thread.run_sync(self.actor.log.problems)

    async def change(self, change_id: str) -> list[ChangeRecord]:
        """Return the records of one change, oldest first.

        Raises:
            UnknownChangeError: There is no such change.
        """
        return await anyio.to_thread.run_sync(self.actor.log.story, change_id)

    async def wait_for_traffic(self, cache: str, least_seconds: float, most_seconds: float, progress: Progress = silent) -> float:
        """Wait until a window holds enough lookups for advice, and return its length in seconds.

        Args:
            cache: Name of the cache.
            least_seconds: Wait at least this long.
            most_seconds: Stop waiting after this time, whatever was seen.
            progress: Called while waiting.
        """
        named = await self.registry.find(cache)
        start = await observer.read(named)
        while True:
            metrics = metrics_between(start, await observer.watch(named))
            seconds, lookups = time.time() - start.taken_at, metrics.total_requests
            if seconds >= most_seconds or (seconds >= least_seconds and enough(lookups, metrics, start.chunk_size)):
                return seconds
            seen = f"{metrics.tokens.requested} tokens" if lookups is None else f"{lookups} lookups"
            progress(f"observing {cache}: {seen} in {seconds:.0f} s (at least {ENOUGH_LOOKUPS} lookups and {least_seconds:g} s)")
            await anyio.sleep(READ_EVERY)

    # ---- advise ----

    async def diagnose(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> tuple[Symptom, ...]:
        """Return what is wrong in a window, worst first."""
        return (await self.diagnosis(cache, window_seconds, progress))[0]

    async def diagnosis(
        self, cache: str = DEFAULT, window_seconds: float | None = None, progress: Progress = silent
    ) -> tuple[tuple[Symptom, ...], Window]:
        """Return what is wrong, worst first, and the window that was looked at: it never spans a change of settings."""
        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds, progress))
        return await anyio.to_thread.run_sync(diagnose, seen), seen.metrics.window

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
        from .recommender.recommend import recommend

        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds, progress, since), bounds)
        # In a thread: the search takes seconds on a long log.
        self.last_advice[named.name] = advice = await anyio.to_thread.run_sync(recommend, seen)
        return advice

    async def forecast(
        self, cache: str = DEFAULT, instead: ConfigUpdate | None = None, sizes_mb: Sequence[float] | None = None
    ) -> "tuple[Forecast, CacheMetrics]":
        """Return what L1 sizes would give on the requests since L1 was last empty, and what was measured since the start.

        Args:
            cache: Name of the cache.
            instead: Settings to assume in place of those in force.
            sizes_mb: L1 sizes, MB; by default a grid chosen from the log.

        Raises:
            UnsupportedError: There is no access log, so nothing can be predicted.
            WorkloadError: The log, or the settings, cannot be predicted from.
        """
        from .recommender.modelled import forecast_of

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
    ) -> "TenantQuotas":
        """Return the L2 quotas that would give the most hits within a budget, and whether one shared L2 does as well.

        Args:
            cache: Name of the cache.
            window_seconds: Length of the window.
            budget_mb: What the quotas may add up to, MB; by default what they add up to now, else the size of L2.

        Raises:
            UnsupportedError: The access log does not separate tenants, or there is no budget to divide.
        """
        from .recommender.tenant_quotas import tenant_quotas

        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named, window_seconds))
        return await anyio.to_thread.run_sync(partial(tenant_quotas, seen, budget_mb=budget_mb))

    async def report(self, cache: str = DEFAULT) -> str:
        """Return one self-contained HTML page: status, advice with its evidence, pictures and the history of changes."""
        named = await self.registry.find(cache)
        seen = await self._observe(named, await self._window(named))
        return await anyio.to_thread.run_sync(_page, seen, await self.changes(cache), await self.log_problems())

    # ---- change settings ----

    async def plan(
        self,
        cache: str,
        wanted: CacheConfig | ConfigUpdate,
        reason: str,
        bounds: Bounds | None = None,
        fingerprint: str | None = None,
    ) -> Plan:
        """Return what has to change for the cache to be as wanted, and what that costs. Changes nothing. See `Actor.plan`.

        Args:
            cache: Name of the cache.
            wanted: Any subset of the settings.
            reason: Why; goes into the change log.
            bounds: Narrows the operator's bounds.
            fingerprint: Fingerprint of an earlier plan that this plan must equal.

        Raises:
            NothingToChangeError: The cache already is as wanted.
            StalePlanError: The cache changed since the earlier plan was made, or that plan was for other settings.
        """
        named = await self.registry.find(cache)
        plan = await self.actor.plan(named, wanted, reason, bounds)
        if plan.command is not None and named.settings.kubernetes is not None:
            plan = plan.model_copy(update={"command": await anyio.to_thread.run_sync(_patch_of, named, plan.command)})
        if fingerprint not in (None, plan.fingerprint):
            raise StalePlanError(
                f"{cache} is not, or no longer, as the plan with fingerprint {fingerprint} found it, or that plan is for other"
                " settings; read the cache and plan anew. Nothing was changed"
            )
        return plan

    async def predicted_plan(self, cache: str, wanted: CacheConfig | ConfigUpdate, reason: str) -> Plan:
        """Return a plan with the gain that the model predicts for it on the requests seen so far, if it can predict one."""
        from .recommender.modelled import gain_of_update

        plan, named = await self.plan(cache, wanted, reason), await self.registry.find(cache)
        with contextlib.suppress(LMCacheToolError):  # a log that cannot be read keeps nobody from planning
            seen = await self._observe(named, await self._window(named))
            predicted = await anyio.to_thread.run_sync(gain_of_update, seen, plan.update)
            plan = plan.model_copy(update={"predicted": predicted})
        return plan

    async def apply(self, plan: Plan, actor: str, progress: Progress = silent, before: Baseline | None = None) -> ChangeResult:
        """Carry out a plan. See `Actor.apply`.

        Args:
            plan: The plan.
            actor: Who asks; goes into the change log.
            progress: Called while waiting.
            before: What the cache did before the change, recorded with it for `verify_change`. By default the last minutes, as
                far as they were read, else the counters since the cache process started.
        """
        named = await self._changeable(plan.cache)
        before = before or await self._lately(named)
        return await self._changed_now(named, await self.actor.apply(named, plan, self._who(actor), progress, baseline=before))

    async def configure(
        self,
        cache: str,
        wanted: CacheConfig | ConfigUpdate,
        reason: str,
        actor: str,
        *,
        bounds: Bounds | None = None,
        fingerprint: str | None = None,
        progress: Progress = silent,
    ) -> ChangeResult | None:
        """Plan and apply in one call. Return ``None`` if the cache already is as wanted."""
        try:
            plan = await self.plan(cache, wanted, reason, bounds, fingerprint)
        except NothingToChangeError:
            return None
        return await self.apply(plan, actor, progress)

    async def undo(
        self, cache: str | None, change_id: str, actor: str, progress: Progress = silent, reason: str = ""
    ) -> ChangeResult:
        """Undo a change by its id. Without `cache`, the change log names the cache. See `Actor.undo`."""
        name = cache or (await self._record_of(change_id)).cache
        named = await self._changeable(name)
        return await self._changed_now(named, await self.actor.undo(named, change_id, self._who(actor), progress, reason))

    async def _lately(self, cache: Cache) -> Baseline | None:
        """Return what the cache did in the last minutes, or ``None`` if nothing was read of that."""
        seen = observer.baseline(cache, await observer.recent(cache, await self._changed(cache)), None)
        return seen if seen.metrics.tokens.requested and not seen.metrics.window.lifetime else None

    async def _changed_now(self, cache: Cache, result: ChangeResult) -> ChangeResult:
        """Read the cache right after a change, so that the next window can start there."""
        cache.history.settings_read(result.config, time.time())
        with contextlib.suppress(LMCacheToolError):  # the change is made and on record, whatever this reading says
            await observer.read(cache)
        return result

    async def check_cooldown(self, cache: str) -> None:
        """Raise `CooldownError` while the last change of the cache is too recent."""
        await self.actor.check_cooldown(await self.registry.find(cache))

    # ---- verify a change ----

    async def baseline(self, cache: str, window_seconds: float | None = None, progress: Progress = silent) -> Baseline:
        """Return what the cache did in a window, to be compared with what it does after a change."""
        named = await self.registry.find(cache)
        readings = await self._window(named, window_seconds, progress)
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
        story = await anyio.to_thread.run_sync(self.actor.log.story, change.change_id, limiter=self._log_readers)
        found = await self._verify(named, story, before, patience, progress)
        await self.actor.note_verification(change.change_id, found)
        return found

    async def verify_change(
        self, change_id: str, patience: float, cache: str | None = None, progress: Progress = silent
    ) -> Verification:
        """Verify a change that is on record, also one that another process made.

        The change is compared with the figures recorded when it was made. The traffic since the change counts as far as this
        process has read the cache since; the rest is waited for. The verdict goes on record, unless the caller may only read:
        whoever waits too briefly finds a change undecided, and must not put that in the place of another's verdict.

        Args:
            change_id: The change.
            patience: Longest wait for as many tokens as before the change, seconds.
            cache: Name of the cache; by default the change log names it.
            progress: Called while waiting.

        Raises:
            UnknownChangeError: There is no such change of settings, it is not in force, or nothing was recorded to compare with.
        """
        record = await self._record_of(change_id, cache)
        named = await self.registry.find(record.cache)
        wrong = not_in_force(record.changes, await named.deployment.config())
        if not record.changes or wrong is not None:
            why = f"the cache reads {wrong}" if wrong else "it changed no setting"
            raise UnknownChangeError(f"{change_id} is not in force on {named.name}, so it cannot be verified: {why}")
        if record.baseline is None:
            raise UnknownChangeError(
                f"{change_id} was recorded without figures from before it (by an earlier version), so there is nothing to compare"
                " with; undo it and set it again, then verify that change"
            )
        story = [one for one in await self.change(change_id) if one.cache == record.cache]
        found = await self._verify(named, story, record.baseline, patience, progress)
        if Right.CHANGE not in self.registry.settings.rights_of(self.caller):
            return found.model_copy(update={"why": f"{found.why} {NOT_NOTED}"})
        await self.actor.note_verification(record.change_id, found)
        return found

    async def _verify(
        self, named: Cache, story: Sequence[ChangeRecord], before: Baseline, patience: float, progress: Progress
    ) -> Verification:
        from .recommender.modelled import server_setting
        from .recommender.verify import settings_moved, verify

        record, config = story[0], await named.deployment.config()
        start = (await self._window(named))[0] or await observer.read(named)
        wanted, deadline = before.metrics.tokens.requested, time.monotonic() + patience
        while True:
            served = metrics_between(start, await observer.watch(named)).tokens.requested
            progress(f"verifying: {served} of {wanted} tokens seen since the change")
            if served >= wanted > 0 or time.monotonic() >= deadline:
                break
            await anyio.sleep(READ_EVERY)
        readings = (start, await observer.read(named))
        seen = await self._observe(named, readings)
        changed = next((one.recorded_at.timestamp() for one in story if one.outcome is ChangeOutcome.APPLIED), None)
        judge = partial(
            verify,
            before,
            observer.baseline(named, readings, await lookups_since(seen.log, start.taken_at)),
            in_force=not_in_force(record.changes, seen.config) is None,
            seen=seen,
            old=server_setting(seen, {one.setting: one.old for one in record.changes}),
            changed_at=None if settings_moved(record, seen.config) else changed,
            predicted=record.predicted,
        )
        found = await anyio.to_thread.run_sync(judge)
        found = found.model_copy(update={"change_id": record.change_id})
        if config.known() != seen.config.known():
            found = found.model_copy(update={"verdict": VerificationVerdict.UNDECIDED, "why": f"{MEDDLED}. {found.why}"})
        return found

    async def try_out(self, change: ChangeResult, before: Baseline, patience: float, progress: Progress = silent) -> Verification:
        """Watch a change of small expected gain until a sequential test decides whether it helps. See `recommender.trial`.

        Args:
            change: The applied change.
            before: What the cache did before the change, in a window that this process has observed.
            patience: Longest wait, seconds. If it runs out, the verdict is "undecided".
            progress: Called while waiting.
        """
        from .recommender.modelled import server_setting
        from .recommender.trial import look

        named, record = await self.registry.find(change.plan.cache), await self._record_of(change.change_id)
        start = (await self._window(named))[0] or await observer.read(named)
        deadline, look_at = time.monotonic() + patience, time.monotonic() + LOOK_EVERY
        earlier = named.history.served(before.metrics.window.start.timestamp(), before.metrics.window.end.timestamp())
        while True:
            over = time.monotonic() >= deadline
            after = await observer.watch(named)
            if over or time.monotonic() >= look_at:
                seen = await self._observe(named, (start, after))
                held = not_in_force(record.changes, seen.config) is None and named.history.unchanged_since(start)
                old = server_setting(seen, {one.setting: one.old for one in record.changes})
                served = named.history.served(start.taken_at, after.taken_at)
                judge = partial(look, seen, old, before, earlier, served, in_force=held)
                found = await anyio.to_thread.run_sync(judge)
                progress(f"trial: {found.why}")
                if over or found.verdict is not VerificationVerdict.UNDECIDED or not held:
                    break
                look_at = time.monotonic() + LOOK_EVERY
            await anyio.sleep(READ_EVERY)
        found = found.model_copy(update={"change_id": record.change_id, "predicted": record.predicted})
        await self.actor.note_verification(record.change_id, found)
        return found

    # ---- change what is stored ----

    async def optimize(
        self, cache: str, target_utilization_percent: float, actor: str, reason: str = ""
    ) -> CacheOptimizationResult:
        """Remove least recently used entries until at most `target_utilization_percent` of L1 is used."""
        named = await self._changeable(cache, Right.CLEAR)

        async def trim() -> None:
            total = (await named.deployment.snapshot()).l1_total_bytes
            await named.deployment.trim(int(total * target_utilization_percent / 100))

        return await self.actor.drop(named, "optimize", self._who(actor), reason, trim)

    async def clear(self, cache: str, actor: str, reason: str = "") -> CacheOptimizationResult:
        """Remove everything from L1 except what requests hold locked. L2 is not touched."""
        named = await self._changeable(cache, Right.CLEAR)
        return await self.actor.drop(named, "clear", self._who(actor), reason, named.deployment.clear)

    async def delete_chunks(
        self, cache: str, model: str, chunk_hashes: Sequence[str], tenant: str, actor: str
    ) -> CacheOptimizationResult:
        """Remove chunks from L1 by their hash. A result with ``success=False`` says that no such chunk was there."""
        named = await self._changeable(cache, Right.CLEAR)
        deleted = 0

        async def delete() -> None:
            nonlocal deleted
            deleted = await named.deployment.delete(model, chunk_hashes, tenant)

        dropped = await self.actor.drop(
            named, "delete", self._who(actor), f"{len(chunk_hashes)} chunks of {plain(model)}", delete
        )
        return dropped.model_copy(update={"success": deleted > 0, "message": f"{deleted} chunks were deleted from L1"})

    async def delete_prefix(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str
    ) -> CacheOptimizationResult:
        """Remove all chunks of a prompt prefix, given as token ids, from L1 and L2, and look whether they are gone.

        A result with ``success=False`` says that nothing of the prefix was there.

        Raises:
            OutcomeUnknownError: A lookup still finds the prefix.
        """
        named = await self._changeable(cache, Right.CLEAR)
        message, deleted = "", 0

        async def delete() -> None:
            nonlocal message, deleted
            deleted = await named.deployment.delete_prefix(model, tokens, tenant)
            found, why = await named.deployment.still_found(model, tokens, tenant)
            if found:
                raise OutcomeUnknownError(
                    f"{deleted} chunks of the prefix were deleted, and a lookup still finds {found}: requests lock them, store"
                    " them again, or an L2 adapter kept them. Delete again when no request uses the prefix"
                )
            what = f"{deleted} chunks of the prefix were deleted" if deleted else "nothing of the prefix was in L1"
            unchecked = f"whether a lookup still finds it could not be checked ({why})"
            message = f"{what}; " + (unchecked if found is None else "a lookup no longer finds it, in any tier")

        dropped = await self.actor.drop(named, "delete", self._who(actor), reason, delete)
        return dropped.model_copy(update={"success": deleted > 0, "message": message})

    async def warm(self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str = "") -> WarmResult:
        """Load a known prompt prefix from L2 into L1. Recorded in the change log, since it takes room from other entries."""
        named = await self._changeable(cache)

        async def warm() -> WarmResult:
            return await named.deployment.warm(model, tokens, tenant)

        warmed, record = await self.actor.carry_out(named, "warm", self._who(actor), reason, warm)
        return warmed.model_copy(update={"change_id": record.change_id})

    async def pin(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str, *, pinned: bool = True
    ) -> PinResult:
        """Protect a prompt prefix from eviction, or with ``pinned=False`` end the protection. Recorded in the change log."""
        named = await self._changeable(cache)
        verb = "pin" if pinned else "unpin"

        async def pin() -> int:
            return await named.deployment.pin(model, tokens, tenant, pinned=pinned)

        chunks, record = await self.actor.carry_out(named, verb, self._who(actor), reason, pin)
        return PinResult(chunks=chunks, change_id=record.change_id, message=f"{verb}ned {chunks} chunks of {plain(model)}")

    async def _changeable(self, cache: str, right: Right = Right.CHANGE) -> Cache:
        """Find a cache that is about to be changed, if caller and operator permit that; see `check_permitted`."""
        settings = self.registry.settings
        check_right(settings.rights_of(self.caller), right, self.caller, self.approved_by)
        named = await self.registry.find(cache)
        check_permitted(named, settings.approver_names, self.approved_by)
        return named

    def _who(self, actor: str) -> str:
        asked = f", asked by {self.caller}" if self.caller not in (None, self.approved_by) else ""
        program = f", with {plain(self.program)}" if self.program else ""
        approved = "" if self.approved_by is None else f", approved by {self.approved_by}"
        return actor + asked + program + approved

    async def _record_of(self, change_id: str, cache: str | None = None) -> ChangeRecord:
        """Return the first record of a change.

        Raises:
            UnknownChangeError: There is no such change, or several caches have one and `cache` does not say which.
        """
        story = await anyio.to_thread.run_sync(self.actor.log.story, change_id)
        of_caches = {record.cache: record for record in reversed(story) if cache in (None, record.cache)}
        if not of_caches:
            raise UnknownChangeError(f"{change_id} is a change of {story[0].cache}, not of {cache}")
        if len(of_caches) > 1:
            raise UnknownChangeError(f"{', '.join(sorted(of_caches))} each have a change {change_id}; say which cache is meant")
        return next(iter(of_caches.values()))

    async def _figures(self, cache: Cache, seconds: float | None, progress: Progress) -> observer.Readings:
        """Return the readings of a window. Without a length these are the totals since the start, and say so."""
        return (None, await observer.read(cache)) if seconds is None else await self._window(cache, seconds, progress)

    async def _window(
        self, cache: Cache, seconds: float | None = None, progress: Progress = silent, since: float | None = None
    ) -> observer.Readings:
        """Return the readings of a window that spans no change of settings; see `observer.window`."""
        return await observer.window(cache, seconds, progress, since, await self._changed(cache))

    async def _changed(self, cache: Cache) -> float | None:
        """Return the Unix time at which settings were last changed through us, by the change log."""
        server = (cache.history.latest or await observer.read(cache)).server
        last = partial(self.actor.log.last_change_of_settings, cache.name, server)
        changed = await anyio.to_thread.run_sync(last, limiter=self._log_readers)
        return changed.timestamp() if changed else None

    async def _observe(
        self,
        cache: Cache,
        readings: observer.Readings | None = None,
        bounds: Bounds | None = None,
        *,
        read_log: bool = True,
    ) -> Observation:
        """Observe the cache; see `observer.observe`. Lookups before our last clear are left out."""
        server = (cache.history.latest or await observer.read(cache)).server
        last = partial(self.actor.log.last_clear, cache.name, server)
        cleared = await anyio.to_thread.run_sync(last, limiter=self._log_readers)
        return await observer.observe(cache, cleared.timestamp() if cleared else None, readings, bounds, read_log=read_log)


def _resource(cache: Cache) -> "Resource | None":
    """Return the Kubernetes resource of a cache, or ``None`` if the operator named none."""
    from .caches.kubernetes import read_resource

    return None if cache.settings.kubernetes is None else read_resource(cache.settings.kubernetes)


def _patch_of(cache: Cache, command: str) -> str:
    """Return a restart as a patch of the cache's resource."""
    from .caches.kubernetes import merge_patch, patch_command
    from .caches.start_configuration import arguments_of, pairs_of

    resource = _resource(cache)
    assert resource is not None  # noqa: S101  asked for where the operator named one
    return patch_command(merge_patch(pairs_of(arguments_of(command)), resource)[0], resource)


async def _drift_note(cache: Cache, config: CacheConfig) -> dict[str, str]:
    """Return a note for the status where the resource is not what is in force, or cannot be read."""
    try:
        resource = await anyio.to_thread.run_sync(_resource, cache)
    except SettingsError as error:
        return {"kubernetes": str(error)}
    found = () if resource is None else drift(resource, config)
    said = "; ".join(f"{one.setting} is {one.in_force} and {one.spec} in the resource" for one in found)
    return {"kubernetes": f"{said}: the next pod starts with the resource's values; see `export`"} if found else {}


async def _top_entries(cache: Cache) -> tuple[tuple[CacheEntry, ...] | None, str | None]:
    """Return the most used entries, or why they are unknown."""
    try:
        return tuple(await cache.deployment.entries(TOP_ENTRIES)), None
    except UnsupportedError as error:
        return None, str(error)


def _page(seen: Observation, changes: Sequence[ChangeRecord], log_problems: Sequence[str]) -> str:
    """Return the report of one observation. Without a usable access log the report leaves out the predictions."""
    from .recommender.modelled import forecast_of
    from .recommender.recommend import recommend
    from .report.page import html_report

    try:
        forecast = None if seen.log is None else forecast_of(seen)
    except WorkloadError:
        forecast = None
    return html_report(recommend(seen), seen.metrics, forecast=forecast, changes=changes, log_problems=log_problems)


@cache
def shared_operations() -> Operations:
    """Return the operations on the operator's own caches. One per process, so an embedded server is shared too."""
    return Operations(Registry(Settings.load()))
