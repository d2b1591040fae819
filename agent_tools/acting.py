"""Changing a cache safely: a plan bound to what it was made for, one change at a time, every step on record, and undo."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from filelock import FileLock, Timeout

from .change_log import ChangeLog, new_id, now
from .deployments.base import Progress
from .deployments.directory import Cache
from .deployments.snapshot import Snapshot
from .errors import (
    BusyError,
    CacheDiedError,
    CooldownError,
    LMCacheToolError,
    OutcomeUnknownError,
    OutOfBoundsError,
    StalePlanError,
    UnknownChangeError,
    UnreachableError,
    UnsupportedError,
)
from .models import (
    MB,
    Bounds,
    CacheConfig,
    CacheOptimizationResult,
    ChangeOutcome,
    ChangeRecord,
    ChangeResult,
    ConfigUpdate,
    Plan,
    SettingChange,
    SupportLevel,
)
from .recommender.recommend import setting_changes

T = TypeVar("T")
RESTART_LOSES = "a restart empties L1: requests are recomputed until it is full again, and engines are degraded for about 20 s"
COOLDOWN_SECONDS = (60.0, 86_400.0)
"""Shortest and longest cool-down, unless the operator set one."""


class Actor:
    """Makes and carries out changes of caches, and keeps their record."""

    def __init__(self, state_folder: Path) -> None:
        self.log = ChangeLog(state_folder / "changes.jsonl")
        self._locks = state_folder / "locks"

    async def plan(self, cache: Cache, update: ConfigUpdate, reason: str, bounds: Bounds | None = None) -> Plan:
        """What the update would change, checked against bounds and deployment; nothing is changed.

        Args:
            cache: What is to be changed.
            update: How it is to be set.
            reason: Why.
            bounds: What this run allows, where that is less than what the operator allows.

        Raises:
            OutOfBoundsError: The operator does not allow it.
            UnsupportedError: The deployment cannot do it, or there is nothing to change.
        """
        config = await cache.deployment.config()
        allowed = cache.settings.bounds.narrowed(bounds)
        violation = allowed.violation(update, config)
        if violation is not None:
            raise OutOfBoundsError(f"{violation}; nothing was changed")
        plan = await self._plan(cache, update, config, reason)
        if plan.needs_restart and cache.deployment.owned and not allowed.allow_restart:
            settings = ", ".join(c.setting for c in plan.changes if c.how is SupportLevel.RESTART)
            raise OutOfBoundsError(f"{settings} needs a restart, which the operator's bounds do not allow; nothing was changed")
        return plan

    async def apply(self, cache: Cache, plan: Plan, actor: str, progress: Progress, undoes: str | None = None) -> ChangeResult:
        """Carry out a plan, once, and read back what is in force; a plan that was carried out before is not carried out again.

        Raises:
            StalePlanError: The cache is not as it was when the plan was made.
            BusyError: Another change of this cache is under way.
            UnsupportedError: A setting needs a restart of a server we do not own; the message holds its new command line.
            OutcomeUnknownError, CacheDiedError: As the names say; the message holds what is known.
        """
        async with self._sole_changer(cache):
            before = await cache.deployment.config()
            done = await anyio.to_thread.run_sync(self.log.of_plan, plan.plan_id)
            if done and not_in_force(plan.changes, before) is None:
                return await self._found_done(plan, done, before)
            if plan.fingerprint != fingerprint(cache.name, before, await cache.deployment.snapshot()):
                raise StalePlanError(
                    f"{cache.name} has changed since {plan.plan_id} was made; make a new plan. Nothing was changed"
                )
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
            )
            after = await self._recorded(cache, record, lambda: self._apply_and_read_back(cache, plan, progress))
        return _result(plan, record.change_id, after)

    async def _found_done(self, plan: Plan, story: list[ChangeRecord], config: CacheConfig) -> ChangeResult:
        """What came of a plan that was carried out before, perhaps by a process that died before it could say so."""
        if all(record.outcome is not ChangeOutcome.APPLIED for record in story):
            await self._record(story[0], ChangeOutcome.APPLIED, "found in force")
        return _result(plan, story[0].change_id, config)

    async def undo(self, cache: Cache, change_id: str, actor: str, progress: Progress) -> ChangeResult:
        """Set back what a change set, whatever the bounds say: they allowed the old values once.

        Raises:
            UnknownChangeError: There is no such change of this cache, or nothing of it is left to undo.
        """
        story = await anyio.to_thread.run_sync(self.log.story, change_id)
        outcomes = {record.outcome for record in story}
        if story[0].cache != cache.name or not story[0].changes:
            raise UnknownChangeError(f"{change_id} is not a change of settings of {cache.name}: there is nothing to undo")
        if ChangeOutcome.UNDONE in outcomes or ChangeOutcome.REFUSED in outcomes:
            raise UnknownChangeError(f"{change_id} is not in force any more ({', '.join(sorted(o.value for o in outcomes))})")
        old = {change.setting: change.old for change in story[0].changes}
        unknown = [setting for setting, value in old.items() if value is None]
        if unknown:
            raise UnknownChangeError(f"{', '.join(unknown)} had no known value before {change_id}; set it by hand")
        plan = await self._plan(cache, ConfigUpdate(**old), await cache.deployment.config(), f"undo {change_id}")
        result = await self.apply(cache, plan, actor, progress, undoes=change_id)
        await self.note(change_id, ChangeOutcome.UNDONE, f"by {result.change_id}")
        return result

    async def drop(
        self, cache: Cache, operation: str, actor: str, reason: str, dropping: Callable[[], Awaitable[None]]
    ) -> CacheOptimizationResult:
        """Carry out an operation that removes entries, and count what it removed by LMCache's own figures."""

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
        """Do something to what is stored, alone and on record; no setting is changed."""
        record = ChangeRecord(
            change_id=new_id("change"),
            recorded_at=now(),
            cache=cache.name,
            actor=actor,
            operation=operation,
            outcome=ChangeOutcome.STARTED,
            reason=reason,
        )
        async with self._sole_changer(cache):
            return await self._recorded(cache, record, work), record

    async def check_cooldown(self, cache: Cache) -> None:
        """Raise `CooldownError` while the last change is too recent for its effect to be judged."""
        last = await anyio.to_thread.run_sync(self.log.last_change, cache.name)
        if last is None:
            return
        age, cooldown = (now() - last.recorded_at).total_seconds(), _cooldown_seconds(cache)
        if age < cooldown:
            raise CooldownError(
                f"{cache.name} was last changed {age:.0f} s ago ({last.change_id}); wait {cooldown - age:.0f} s more, so that the"
                " effect of one change is seen before the next"
            )

    async def note(self, change_id: str, outcome: ChangeOutcome, detail: str) -> None:
        """Record what became of a change."""
        first = (await anyio.to_thread.run_sync(self.log.story, change_id))[0]
        await self._record(first, outcome, detail)

    async def _record(self, record: ChangeRecord, outcome: ChangeOutcome, detail: str) -> None:
        line = record.model_copy(update={"recorded_at": now(), "outcome": outcome, "detail": detail})
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.log.append, line)

    async def _plan(self, cache: Cache, update: ConfigUpdate, config: CacheConfig, reason: str) -> Plan:
        support = await cache.deployment.support(update)
        changes = setting_changes(update, config.known(), support)
        if not changes:
            raise UnsupportedError(f"{cache.name} already has these settings: there is nothing to change")
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
            loses=RESTART_LOSES if restarts else None,
            command=await cache.deployment.restart_command(update) if restarts and not cache.deployment.owned else None,
            fingerprint=fingerprint(cache.name, config, await cache.deployment.snapshot()),
        )

    async def _apply_and_read_back(self, cache: Cache, plan: Plan, progress: Progress) -> CacheConfig:
        await cache.deployment.apply(plan.update, progress)
        after = await cache.deployment.config()
        wrong = not_in_force(plan.changes, after)
        if wrong:
            raise OutcomeUnknownError(
                f"LMCache accepted the change, but reads back {wrong}; read its configuration before anything else"
            )
        return after

    async def _recorded(self, cache: Cache, record: ChangeRecord, change: Callable[[], Awaitable[T]]) -> T:
        """Carry out a change between a first and a last line in the log."""
        last_known = await _describe(cache)
        await self._record(record, ChangeOutcome.STARTED, "")
        outcome, detail = ChangeOutcome.UNKNOWN, "interrupted"
        try:
            result = await change()
            outcome, detail = ChangeOutcome.APPLIED, ""
        except (CacheDiedError, OutcomeUnknownError, UnreachableError) as error:
            told = await _fate(cache, error, last_known)
            outcome = ChangeOutcome.FAILED if isinstance(told, CacheDiedError) else ChangeOutcome.UNKNOWN
            detail = str(told)
            raise told from error
        except LMCacheToolError as error:
            outcome, detail = ChangeOutcome.REFUSED, str(error)
            raise
        else:
            return result
        finally:
            await self._record(record, outcome, detail)

    @contextlib.asynccontextmanager
    async def _sole_changer(self, cache: Cache) -> AsyncIterator[None]:
        """One change at a time per cache, among all processes of this state folder; released if we die."""
        target = f"{cache.name}-{os.getpid()}" if cache.settings.private else cache.settings.target
        lock = FileLock(self._locks / f"{hashlib.sha256(target.encode()).hexdigest()[:16]}.lock", thread_local=False)
        try:
            await anyio.to_thread.run_sync(_acquire, lock)
        except Timeout as error:
            raise BusyError(f"another change of {cache.name} is under way; wait until it is done. Nothing was changed") from error
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lock.release)


def _result(plan: Plan, change_id: str, config: CacheConfig) -> ChangeResult:
    return ChangeResult(
        success=True,
        message=f"{plan.cache}: {plan}",
        change_id=change_id,
        plan=plan,
        config=config,
        undo=f"undo change {change_id}",
    )


def _cooldown_seconds(cache: Cache) -> float:
    """What the operator set, else the time in which L1 fills once: sooner, the effect of a change cannot be seen."""
    if cache.settings.cooldown_seconds is not None:
        return cache.settings.cooldown_seconds
    fill = cache.history.latest.fill_seconds if cache.history.latest else None
    shortest, longest = COOLDOWN_SECONDS
    return min(max(fill or shortest, shortest), longest)


def _acquire(lock: FileLock) -> None:
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    lock.acquire(timeout=0)


def fingerprint(name: str, config: CacheConfig, snapshot: Snapshot) -> str:
    """Digest of a cache, its process and its settings."""
    facts = [name, snapshot.instance_id, snapshot.process_start, config.known(), config.differences]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def not_in_force(changes: tuple[SettingChange, ...], config: CacheConfig) -> str | None:
    """Which changes do not read back, as text; sizes may differ by a memory page."""
    current = config.known()
    wrong = [
        f"{c.setting}={current.get(c.setting)} instead of {c.new}" for c in changes if not _same(current.get(c.setting), c.new)
    ]
    return ", ".join(wrong) or None


def _same(value: object, wanted: object) -> bool:
    if isinstance(value, float) and isinstance(wanted, float | int):
        return abs(value - wanted) <= 2**14 / MB
    if isinstance(value, dict) and isinstance(wanted, dict):  # tenants' quotas
        return value.keys() == wanted.keys() and all(_same(value[name], wanted[name]) for name in wanted)
    return value == wanted


async def _describe(cache: Cache) -> str:
    snapshot = await cache.deployment.snapshot()
    return (
        f"last known state: {snapshot.l1_used_bytes / MB:.1f} of {snapshot.l1_total_bytes / MB:.1f} MB used,"
        f" {snapshot.resident_objects} entries"
    )


async def _fate(cache: Cache, error: LMCacheToolError, last_known: str) -> LMCacheToolError:
    """What is to be told of a change whose answer did not come: is the cache still there?"""
    if isinstance(error, CacheDiedError):
        return CacheDiedError(f"{error}. It died in the middle of the change; {last_known}")
    if cache.deployment.owned:
        return error
    try:
        await cache.deployment.snapshot()
    except UnreachableError:
        return CacheDiedError(f"{cache.name} died, or hangs, in the middle of the change: it no longer answers; {last_known}")
    return error if isinstance(error, OutcomeUnknownError) else OutcomeUnknownError(f"{error}; {last_known}")
