"""What became of a change: whatever LMCache answered, what is in force is read, or told to be unknown."""

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from agent_tools.caches.registry import Cache
from agent_tools.deployments.base import Progress
from agent_tools.errors import (
    CacheDiedError,
    LMCacheToolError,
    NotLMCacheError,
    OutcomeUnknownError,
    RefusedError,
    UnreachableError,
)
from agent_tools.models import MB, CacheConfig, Plan, SettingChange

T = TypeVar("T")


async def apply_and_read_back(cache: Cache, plan: Plan, before: CacheConfig, progress: Progress) -> CacheConfig:
    """The settings in force after a plan was carried out: only what reads as before was refused.

    Raises:
        OutcomeUnknownError: Part of it is in force, or what is in force could not be read.
        CacheDiedError: As the name says.
        LMCacheToolError: Refused, for the reason that it says; all reads as before.
    """
    try:
        await cache.deployment.apply(cache.settings.bounds.revealed(plan.update), progress)
    except (CacheDiedError, OutcomeUnknownError):
        raise
    except LMCacheToolError as error:
        now, old = (await _read_back(cache, _cause(error))).known(), before.known()
        if now != old:
            differs = ", ".join(f"{name}={now.get(name)}" for name in {**old, **now} if now.get(name) != old.get(name))
            raise OutcomeUnknownError(f"{_cause(error)}; not all is as it was before: in force is now {differs}") from error
        raise
    after = await _read_back(cache, "LMCache accepted the change")
    wrong = not_in_force(plan.changes, after)
    if wrong:
        raise OutcomeUnknownError(
            f"LMCache accepted the change, but reads back {wrong}; read its configuration before anything else"
        )
    return after


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


async def last_known_state(cache: Cache) -> str:
    """What L1 holds, to be told should the cache die in what follows."""
    snapshot = await cache.deployment.snapshot()
    return (
        f"last known state: {snapshot.l1_used_bytes / MB:.1f} of {snapshot.l1_total_bytes / MB:.1f} MB used,"
        f" {snapshot.resident_objects} entries"
    )


async def surely(work: Callable[[], Awaitable[T]]) -> T:
    """Do something that cannot be read back: what fails in its middle may have been done.

    Raises:
        OutcomeUnknownError: No answer came, or not LMCache's, or that it broke.
    """
    try:
        return await work()
    except (NotLMCacheError, RefusedError, UnreachableError) as error:
        if isinstance(error, RefusedError) and error.status < httpx.codes.INTERNAL_SERVER_ERROR:
            raise
        raise OutcomeUnknownError(f"{_cause(error)}; it may or may not have been done") from error


async def _read_back(cache: Cache, why: str) -> CacheConfig:
    """The settings in force after a change was sent; `why` they are asked for goes before an error."""
    try:
        return await cache.deployment.config()
    except CacheDiedError:
        raise
    except LMCacheToolError as error:
        raise OutcomeUnknownError(f"{why}; what is in force could not be read: {_cause(error)}") from error


def _cause(error: LMCacheToolError) -> str:
    """What happened, without the "nothing was changed" that holds for one call and not for those before it."""
    return re.sub(r"[;.,] nothing was changed", "", str(error), flags=re.IGNORECASE)


async def fate(cache: Cache, error: CacheDiedError | OutcomeUnknownError, last_known: str) -> LMCacheToolError:
    """What is to be told of a change of which no clear answer came: is the cache still there?"""
    if isinstance(error, CacheDiedError):
        return CacheDiedError(f"{error}. It died in the middle of the change; {last_known}")
    try:
        if not cache.deployment.owned:  # one that is owned says itself when it has died, and would be started anew by a question
            await cache.deployment.snapshot()
    except UnreachableError:
        return CacheDiedError(f"{cache.name} died, or hangs, in the middle of the change: it no longer answers; {last_known}")
    except LMCacheToolError:
        pass  # something answers there
    return OutcomeUnknownError(f"{_cause(error)}; {last_known}")
