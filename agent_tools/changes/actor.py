"""Change a cache safely: bind a plan to the cache as it was, make one change at a time, record every step, and undo."""

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from filelock import FileLock, Timeout

from agent_tools.caches.registry import Cache
from agent_tools.caches.settings import IN_PROCESS
from agent_tools.deployments.base import Progress
from agent_tools.deployments.snapshot import Snapshot, metrics_between
from agent_tools.errors import (
    BusyError,
    CacheDiedError,
    CooldownError,
    LMCacheToolError,
    NothingToChangeError,
    OutcomeUnknownError,
    OutOfBoundsError,
    RecordError,
    StalePlanError,
    UnknownChangeError,
    UnsupportedError,
)
from agent_tools.models import (
    MB,
    Baseline,
    Bounds,
    CacheConfig,
    CacheOptimizationResult,
    ChangeOutcome,
    ChangeRecord,
    ChangeResult,
    ConfigUpdate,
    Plan,
    SupportLevel,
    Verification,
    VerificationVerdict,
)
from agent_tools.models.advice import setting_changes
from agent_tools.models.metrics import now
from agent_tools.models.standing import Standing

from .lock import acquire
from .log import Begun, ChangeLog, new_id, stories
from .read_back import LONGEST_DELAY, apply_and_read_back, fate, last_known_state, not_in_force, surely
from .standing import OPEN, departures, end_of
from .wanted import still_to_change

T = TypeVar("T")
RESTART_LOSES = (
    "a restart empties L1: requests are recomputed until it is full again. A vLLM in front hangs and ends itself, unless its"
    " connector is set to give up early (lmcache.mp.mq_timeout 10, lmcache.mp.heartbeat_interval 2; see docs/operators.md): then"
    " one request waits some 6 s"
)
"""Measured: benchmarks/results/engine.md."""
ENGINE_RESTART_LOSES = (
    "a restart of the engine empties L1 and its own cache, and ends the requests it is working on; new ones wait or fail until it"
    " is ready again"
)
OUTCOMES = {
    VerificationVerdict.BETTER: ChangeOutcome.VERIFIED,
    VerificationVerdict.WORSE: ChangeOutcome.FOUND_WORSE,
    VerificationVerdict.UNDECIDED: ChangeOutcome.KEPT_UNVERIFIED,
}
COOLDOWN_SECONDS = (60.0, 86_400.0)
"""Shortest and longest cool-down, unless the operator set one."""


class Actor:
    """Makes and carries out changes of caches, and keeps their record."""

    def __init__(self, state_folder: Path) -> None:
        self.log = ChangeLog(state_folder / "changes.jsonl")
        self._locks = state_folder / "locks"

    async def plan(self, cache: Cache, wanted: CacheConfig | ConfigUpdate, reason: str, bounds: Bounds | None = None) -> Plan:
        """Return what has to change for the cache to be as wanted, checked against bounds and deployment. Changes nothing.

        Args:
            cache: The cache to change.
            wanted: Any subset of the settings; see `still_to_change`.
            reason: Why.
            bounds: Narrows the operator's bounds.

        Raises:
            OutOfBoundsError: The operator does not allow it.
            NothingToChangeError: The cache already is as wanted.
            UnsupportedError: The deployment cannot do it.
        """
        config = await cache.deployment.config()
        allowed = cache.settings.bounds.narrowed(bounds)
        update = still_to_change(wanted, config, allowed, cache.name)
        _check_inside(allowed, update, config)
        plan = await self._plan(cache, update, config, reason)
        _check_restart(cache, allowed, plan)
        return plan

    async def apply(
        self, cache: Cache, plan: Plan, actor: str, progress: Progress, baseline: Baseline | None = None
    ) -> ChangeResult:
        """Carry out a plan once, and read back what is in force. A plan that was carried out before is not carried out again.

        `baseline` is what the cache did before the change, for a later verification: the counters since its start by default.

        Raises:
            StalePlanError: The cache, or the plan, is not as it was when the plan was made.
            OutOfBoundsError: The operator does not allow the change, or no longer allows it.
            BusyError: Another change of this cache is under way.
            UnsupportedError: A setting needs a restart of a server we do not own; the message holds its new command line.
            RecordError: The change log cannot be written, so nothing was changed.
            OutcomeUnknownError, CacheDiedError: As the names say; the message holds what is known.
        """
        async with self._sole_changer(cache) as server:
            return await self._apply(cache, plan, actor, progress, server, baseline=baseline)

    async def _apply(
        self,
        cache: Cache,
        plan: Plan,
        actor: str,
        progress: Progress,
        server: str,
        *,
        undoes: str | None = None,
        baseline: Baseline | None = None,
    ) -> ChangeResult:
        """Apply a plan as the sole changer. The values of a plan that undoes a change may lie outside the bounds."""
        before = await cache.deployment.config()
        done = await anyio.to_thread.run_sync(self.log.of_plan, plan.plan_id)
        if done and not_in_force(plan.changes, before) is None:
            return await self._found_done(plan, done, before)
        if any(record.outcome is ChangeOutcome.APPLIED for record in done):
            raise StalePlanError(
                f"{plan.plan_id} was carried out as {done[0].change_id} and set back since: an approval is for once;"
                " make a new plan. Nothing was changed"
            )
        snapshot = await cache.deployment.snapshot()
        if plan.fingerprint != fingerprint(cache.name, before, snapshot, plan.update):
            raise StalePlanError(f"{cache.name} has changed since {plan.plan_id} was made; make a new plan. Nothing was changed")
        # Whoever made the plan, and whatever the bounds were then:
        if undoes is None:
            _check_inside(cache.settings.bounds, plan.update, before)
        _check_restart(cache, cache.settings.bounds, plan)
        record = ChangeRecord(
            change_id=new_id("change"),
            recorded_at=now(),
            cache=cache.name,
            actor=actor,
            operation="undo" if undoes else "reconfigure",
            outcome=ChangeOutcome.STARTED,
            reason=plan.reason,
            changes=plan.changes,
            before=before,
            undoes=undoes,
            plan_id=plan.plan_id,
            server=server,
            baseline=baseline or Baseline(metrics=metrics_between(None, snapshot)),
            predicted=plan.predicted,
        )
        after = await self._recorded(cache, record, lambda: apply_and_read_back(cache, plan, before, progress))
        return _result(plan, record.change_id, after)

    async def _found_done(self, plan: Plan, story: list[ChangeRecord], config: CacheConfig) -> ChangeResult:
        """Return the result of a plan that was carried out before, perhaps by a process that died before it recorded that."""
        if all(record.outcome is not ChangeOutcome.APPLIED for record in story):
            await self._record(story[0], ChangeOutcome.APPLIED, "found in force")
        return _result(plan, story[0].change_id, config)

    async def undo(self, cache: Cache, change_id: str, actor: str, progress: Progress, reason: str = "") -> ChangeResult:
        """Set back what a change set.

        The old values may lie outside the bounds, which allowed them once. Everything else the bounds say holds: a cache that
        must not be restarted is not restarted.

        Raises:
            UnknownChangeError: There is no such change of this cache, or nothing of it is left to undo.
            OutOfBoundsError: It takes a restart, which the bounds do not allow.
            BusyError: Another change of this cache, perhaps another undo, is under way.
            RecordError: The change log cannot be written. The message says whether anything was changed.
        """
        await self._settings_changed(cache, change_id)  # before the lock, which needs a server that answers
        async with self._sole_changer(cache) as server:
            return await self._undo(cache, change_id, actor, progress, server, reason)

    async def _settings_changed(self, cache: Cache, change_id: str) -> list[ChangeRecord]:
        """Return the records of a change of this server's settings, oldest first, under whichever name it was made."""
        story = await anyio.to_thread.run_sync(self.log.story, change_id)
        first = story[0]
        same = first.cache == cache.name or (first.server is not None and first.server == await identity(cache))
        if not same or not first.changes:
            raise UnknownChangeError(f"{change_id} is not a change of settings of {cache.name}: there is nothing to undo")
        return story

    async def _undo(self, cache: Cache, change_id: str, actor: str, progress: Progress, server: str, reason: str) -> ChangeResult:
        """Undo a change as the sole changer, so that of two undos at once only one finds the change in force."""
        story = await self._settings_changed(cache, change_id)
        outcomes = {record.outcome for record in story}
        if ChangeOutcome.UNDONE in outcomes or ChangeOutcome.REFUSED in outcomes:
            raise UnknownChangeError(f"{change_id} is not in force any more ({', '.join(sorted(o.value for o in outcomes))})")
        old = {change.setting: change.old for change in story[0].changes}
        unknown = [setting for setting, value in old.items() if value is None]
        if unknown:
            raise UnknownChangeError(f"{', '.join(unknown)} had no known value before {change_id}; set it by hand")
        config, begun = await cache.deployment.config(), await anyio.to_thread.run_sync(self.log.undo_of, change_id)
        if begun and not_in_force(begun[0].changes, config) is None:
            result = await self._found_done(_plan_of(begun[0]), begun, config)
        elif not_in_force(tuple(c.model_copy(update={"new": c.old}) for c in story[0].changes), config) is None:
            raise UnknownChangeError(
                f"{change_id} is not in force: {cache.name} is set as it was before it. There is nothing to undo"
            )
        else:
            plan = await self._plan(cache, ConfigUpdate(**old), config, reason or f"undo {change_id}")
            result = await self._apply(cache, plan, actor, progress, server, undoes=change_id)
        try:
            await self.note(change_id, ChangeOutcome.UNDONE, f"by {result.change_id}")
        except RecordError as error:
            raise RecordError(
                f"{change_id} was undone by {result.change_id}, which is on record, but no line could be added to it: {error}"
            ) from error
        return result

    async def drop(
        self, cache: Cache, operation: str, actor: str, reason: str, dropping: Callable[[], Awaitable[None]]
    ) -> CacheOptimizationResult:
        """Remove entries, and count by LMCache's own figures how many are gone."""

        async def counted() -> tuple[Snapshot, Snapshot]:
            before = await cache.deployment.snapshot()
            await dropping()
            return before, await cache.deployment.snapshot()

        started = time.monotonic()
        (before, after), record = await self.carry_out(cache, operation, actor, reason, counted)
        gone, freed = before.resident_objects - after.resident_objects, (before.l1_used_bytes - after.l1_used_bytes) / MB
        return CacheOptimizationResult(
            success=True,
            message=f"{operation} removed {max(gone, 0)} entries and freed {max(freed, 0):.1f} MB;"
            f" {after.resident_objects} entries remain",
            entries_before=before.resident_objects,
            entries_after=after.resident_objects,
            entries_evicted=max(gone, 0),
            memory_freed_mb=freed,
            optimization_time_ms=1e3 * (time.monotonic() - started),
            change_id=record.change_id,
        )

    async def carry_out(
        self, cache: Cache, operation: str, actor: str, reason: str, work: Callable[[], Awaitable[T]]
    ) -> tuple[T, ChangeRecord]:
        """Change what is stored, as the sole changer and on record. No setting is changed."""
        record = ChangeRecord(
            change_id=new_id("change"),
            recorded_at=now(),
            cache=cache.name,
            actor=actor,
            operation=operation,
            outcome=ChangeOutcome.STARTED,
            reason=reason,
        )
        async with self._sole_changer(cache) as server:
            record = record.model_copy(update={"server": server})
            return await self._recorded(cache, record, lambda: surely(work)), record

    async def check_cooldown(self, cache: Cache) -> None:
        """Raise `CooldownError` while the last change of the server is too recent for its effect to be judged."""
        last = await anyio.to_thread.run_sync(self.log.last_change, *cache.on_record(await identity(cache)))
        if last is None:
            return
        age, cooldown = max((now() - last.recorded_at).total_seconds(), 0.0), _cooldown_seconds(cache)
        if age < cooldown:
            raise CooldownError(
                f"{cache.name} was last changed {age:.0f} s ago ({last.change_id}); wait {cooldown - age:.0f} s more, so that the"
                " effect of one change is seen before the next"
            )

    async def standing(self, cache: Cache) -> Standing:
        """Return how the cache stands against the change log. Changes nothing."""
        server, config = await identity(cache), await cache.deployment.config()
        changes = reversed(stories(await anyio.to_thread.run_sync(self.log.records, cache.name, server)))
        return Standing(server=server, config=config, departures=departures(changes, config, server))

    async def settle(self, cache: Cache) -> ChangeRecord | None:
        """Record what became of the last change of settings, if its process ended before it could record that.

        The settings in force tell, as soon as no request of that process can still be under way. Return the new record, or
        ``None`` if there is nothing to settle.

        Raises:
            BusyError: A change of this cache is under way.
        """
        async with self._sole_changer(cache) as server:
            records = await anyio.to_thread.run_sync(self.log.records, cache.name, server)
            last = next((story for story in stories(records) if story[0].changes), None)
            if last is None or last[-1].outcome not in OPEN or last[0].server != server:
                return None
            if (now() - last[-1].recorded_at).total_seconds() < LONGEST_DELAY:
                return None
            end = end_of(last, await cache.deployment.config())
            if end is None:
                return None
            found = "found in force" if end is ChangeOutcome.APPLIED else "found not in force"
            await self._record(last[0], end, f"{found} after the process that made the change had ended")
            undone = last[0].undoes
            if undone is not None and end is ChangeOutcome.APPLIED:
                await self.note(undone, ChangeOutcome.UNDONE, f"by {last[0].change_id}")
            return last[0].model_copy(update={"outcome": end})

    async def note(self, change_id: str, outcome: ChangeOutcome, detail: str) -> None:
        """Record what became of a change."""
        first = (await anyio.to_thread.run_sync(self.log.story, change_id))[0]
        await self._record(first, outcome, detail)

    async def note_verification(self, change_id: str, found: Verification) -> None:
        """Record what a verification found."""
        first = (await anyio.to_thread.run_sync(self.log.story, change_id))[0]
        judged = first.model_copy(update={"verdict": found.verdict, "gain": found.gain})
        await self._record(judged, OUTCOMES[found.verdict], found.why)

    async def _record(self, record: ChangeRecord, outcome: ChangeOutcome, detail: str) -> None:
        line = record.model_copy(update={"recorded_at": now(), "outcome": outcome, "detail": detail, "baseline": None})
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.log.append, line)

    async def _plan(self, cache: Cache, update: ConfigUpdate, config: CacheConfig, reason: str) -> Plan:
        support = await cache.deployment.support(cache.settings.bounds.revealed(update))
        changes = setting_changes(update, config.known(), support)
        if not changes:
            raise NothingToChangeError(f"{cache.name} already has these settings: there is nothing to change")
        for change in changes:
            if change.how is SupportLevel.UNSUPPORTED:
                raise UnsupportedError(f"{change.setting} cannot be changed on {cache.name}: {change.note}. Nothing was changed")
        restarts = any(change.how is SupportLevel.RESTART for change in changes)
        return Plan(
            plan_id=new_id("plan"),
            cache=cache.name,
            created_at=now(),
            update=update,
            changes=changes,
            reason=reason,
            loses=_restart_loses(cache) if restarts else None,
            command=await cache.deployment.restart_command(update) if restarts and not cache.deployment.owned else None,
            fingerprint=fingerprint(cache.name, config, await cache.deployment.snapshot(), update),
        )

    async def _recorded(self, cache: Cache, record: ChangeRecord, change: Callable[[], Awaitable[T]]) -> T:
        """Carry out a change between a first and a last line in the log; without a first line there is no change."""
        last_known = f"{await last_known_state(cache)}; on record as {record.change_id}"
        with anyio.CancelScope(shield=True):
            begun = await anyio.to_thread.run_sync(self.log.begin, record)
        outcome, detail = ChangeOutcome.UNKNOWN, "interrupted"
        try:
            result = await change()
            outcome, detail = ChangeOutcome.APPLIED, ""
        except (CacheDiedError, OutcomeUnknownError) as error:
            told = await fate(cache, error, last_known)
            outcome = ChangeOutcome.FAILED if isinstance(told, CacheDiedError) else ChangeOutcome.UNKNOWN
            detail = str(told)
            raise told from error
        except LMCacheToolError as error:
            outcome, detail = ChangeOutcome.REFUSED, str(error)
            raise
        else:
            return result
        finally:
            await self._end(begun, record, outcome, detail)

    async def _end(self, begun: Begun, record: ChangeRecord, outcome: ChangeOutcome, detail: str) -> None:
        line = record.model_copy(update={"recorded_at": now(), "outcome": outcome, "detail": detail, "baseline": None})
        try:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self.log.end, begun, line)
        except RecordError as error:
            raise RecordError(f"{record.change_id} ended as {outcome.value}, but the record does not say so: {error}") from error

    @contextlib.asynccontextmanager
    async def _sole_changer(self, cache: Cache) -> AsyncIterator[str]:
        """Hold the lock of a server, and yield the server's identity.

        All processes that use this state folder share the lock, whatever name or address they use for the server. The system
        releases it if this process dies.

        Raises:
            BusyError: Another process changes the server.
            SettingsError: The file system of the state folder has no locks, or none that hold between hosts.
        """
        server = await identity(cache)
        lock = FileLock(self._locks / f"{hashlib.sha256(server.encode()).hexdigest()[:16]}.lock", thread_local=False)
        try:
            await anyio.to_thread.run_sync(acquire, lock)
        except Timeout as error:
            raise BusyError(f"another change of {cache.name} is under way; wait until it is done. Nothing was changed") from error
        try:
            yield server
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lock.release)


def _check_inside(allowed: Bounds, update: ConfigUpdate, config: CacheConfig) -> None:
    violation = allowed.violation(update, config)
    if violation is not None:
        raise OutOfBoundsError(f"{violation}; nothing was changed")


def _check_restart(cache: Cache, allowed: Bounds, plan: Plan) -> None:
    if plan.needs_restart and cache.deployment.owned and not allowed.allow_restart:
        settings = ", ".join(c.setting for c in plan.changes if c.how is SupportLevel.RESTART)
        raise OutOfBoundsError(f"{settings} needs a restart, which the operator's bounds do not allow; nothing was changed")


def _restart_loses(cache: Cache) -> str:
    return ENGINE_RESTART_LOSES if cache.settings.kind == IN_PROCESS else RESTART_LOSES


def _result(plan: Plan, change_id: str, config: CacheConfig) -> ChangeResult:
    return ChangeResult(
        success=True,
        message=f"{plan.cache}: {plan}",
        change_id=change_id,
        plan=plan,
        config=config,
        undo=f"undo change {change_id}",
    )


def _plan_of(record: ChangeRecord) -> Plan:
    """Return the plan of a change on record, for its result only: it must not be carried out again."""
    return Plan(
        plan_id=record.plan_id or record.change_id,
        cache=record.cache,
        created_at=record.recorded_at,
        update=ConfigUpdate.model_validate({change.setting: change.new for change in record.changes}),
        changes=record.changes,
        reason=record.reason,
        fingerprint="",
    )


def _cooldown_seconds(cache: Cache) -> float:
    """Return the operator's cool-down, else the time in which L1 fills once: before that, a change has not taken full effect."""
    if cache.settings.cooldown_seconds is not None:
        return cache.settings.cooldown_seconds
    fill = cache.history.latest.fill_seconds if cache.history.latest else None
    shortest, longest = COOLDOWN_SECONDS
    return min(max(fill or shortest, shortest), longest)


async def identity(cache: Cache) -> str:
    """Return what stands for the server itself: not its name or address, of which one server can have several.

    A fleet, and a server that exports no start time, are known by their address only.
    """
    _, private = cache.on_record(None)
    if private is not None:
        return private
    server = None if cache.settings.kind == "fleet" else (await cache.deployment.snapshot()).server
    return server or cache.settings.target.replace("//localhost", "//127.0.0.1").replace("//[::1]", "//127.0.0.1")


def fingerprint(name: str, config: CacheConfig, snapshot: Snapshot, update: ConfigUpdate) -> str:
    """Return a digest of a cache, its process, its settings and the settings asked for. It binds an approval to one plan."""
    facts = [name, snapshot.instance_id, snapshot.process_start, config.known(), config.differences, update.known()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
