"""Find out what became of a change: whatever LMCache answered, read what is in force, or report that it is unknown."""

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
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
SIZES = {"max_size_mb", "tenant_quotas_mb"}
"""Settings that LMCache may round to a memory page."""


LONGEST_DELAY = 20.0
"""Seconds after which a change that was answered by a 5xx is in force, if it ever will be. A server takes up to 15 s for a
change (`module_client.PATIENCE`), and a proxy that gave up waiting may still have forwarded it."""
LOOK_EVERY = 1.0
"""Seconds between readings meanwhile."""


async def apply_and_read_back(cache: Cache, plan: Plan, before: CacheConfig, progress: Progress) -> CacheConfig:
    """Carry out a plan and return the settings in force. A change was refused only if all settings read as before.

    Raises:
        OutcomeUnknownError: Part of the change is in force, or the settings could not be read.
        CacheDiedError: The cache process ended.
        LMCacheToolError: The change was refused, for the reason in the message; all settings read as before.
    """
    try:
        await cache.deployment.apply(cache.settings.bounds.revealed(plan.update), progress)
    except (CacheDiedError, OutcomeUnknownError):
        raise
    except LMCacheToolError as error:
        differs = await _differences(cache, before, error)
        if differs is None and may_still_happen(error):
            progress(f"no clear answer; looking for {LONGEST_DELAY:g} s whether the change comes into force")
            differs = await _late_differences(cache, before, error)
        if differs is not None:
            raise OutcomeUnknownError(f"{_cause(error)}; not all is as it was before: in force is now {differs}") from error
        raise
    after = await _read_back(cache, "LMCache accepted the change")
    wrong = not_in_force(plan.changes, after)
    if wrong:
        raise OutcomeUnknownError(
            f"LMCache accepted the change, but reads back {wrong}; read its configuration before anything else"
        )
    return after


def may_still_happen(error: LMCacheToolError) -> bool:
    """Whether a change may be in force, or come into force later, though it was answered by this error.

    A 5xx is no refusal: a proxy may have given up waiting, and the server may have failed after it made the change.
    """
    return isinstance(error, NotLMCacheError) or (
        isinstance(error, RefusedError) and error.status >= httpx.codes.INTERNAL_SERVER_ERROR
    )


async def _late_differences(cache: Cache, before: CacheConfig, error: LMCacheToolError) -> str | None:
    """Return the first difference that shows within the longest delay, or ``None``."""
    deadline = anyio.current_time() + LONGEST_DELAY
    while anyio.current_time() < deadline:
        await anyio.sleep(min(LOOK_EVERY, LONGEST_DELAY))
        differs = await _differences(cache, before, error)
        if differs is not None:
            return differs
    return None


async def _differences(cache: Cache, before: CacheConfig, error: LMCacheToolError) -> str | None:
    """Return the settings that are not as before, as text; ``None`` if all are."""
    now, old = (await _read_back(cache, _cause(error))).known(), before.known()
    return ", ".join(f"{name}={now.get(name)}" for name in {**old, **now} if now.get(name) != old.get(name)) or None


def not_in_force(changes: tuple[SettingChange, ...], config: CacheConfig) -> str | None:
    """Return the changes that do not read back, as text, or ``None``. Sizes may differ by a memory page."""
    current = config.known()
    wrong = [
        f"{c.setting}={current.get(c.setting)} instead of {c.new}"
        for c in changes
        if current.get(c.setting) != c.new and not (c.setting in SIZES and _same_size(current.get(c.setting), c.new))
    ]
    return ", ".join(wrong) or None


def _same_size(value: object, wanted: object) -> bool:
    if isinstance(value, float) and isinstance(wanted, float | int):
        return abs(value - wanted) <= 2**14 / MB
    if isinstance(value, dict) and isinstance(wanted, dict):  # tenants' quotas
        return value.keys() == wanted.keys() and all(_same_size(value[name], wanted[name]) for name in wanted)
    return False


async def last_known_state(cache: Cache) -> str:
    """Return what L1 holds, to report it if the cache dies during the change."""
    snapshot = await cache.deployment.snapshot()
    return (
        f"last known state: {snapshot.l1_used_bytes / MB:.1f} of {snapshot.l1_total_bytes / MB:.1f} MB used,"
        f" {snapshot.resident_objects} entries"
    )


async def surely(work: Callable[[], Awaitable[T]]) -> T:
    """Carry out something that cannot be read back. If it fails midway, it may have been done.

    Raises:
        OutcomeUnknownError: No answer came, or an answer that is not LMCache's, or a 5xx.
    """
    try:
        return await work()
    except (NotLMCacheError, RefusedError, UnreachableError) as error:
        if isinstance(error, RefusedError) and not may_still_happen(error):
            raise
        raise OutcomeUnknownError(f"{_cause(error)}; it may or may not have been done") from error


async def _read_back(cache: Cache, why: str) -> CacheConfig:
    """Return the settings in force after a change was sent. An error begins with `why` they were read."""
    try:
        return await cache.deployment.config()
    except CacheDiedError:
        raise
    except LMCacheToolError as error:
        raise OutcomeUnknownError(f"{why}; what is in force could not be read: {_cause(error)}") from error


def _cause(error: LMCacheToolError) -> str:
    """Return what happened, without "nothing was changed": that holds for one call and not for the calls before it."""
    return re.sub(r"[;.,] nothing was changed", "", str(error), flags=re.IGNORECASE)


async def fate(cache: Cache, error: CacheDiedError | OutcomeUnknownError, last_known: str) -> LMCacheToolError:
    """Return the error that describes a change whose outcome is unknown: is the cache still there?"""
    if isinstance(error, CacheDiedError):
        return CacheDiedError(f"{error}. It died in the middle of the change; {last_known}")
    try:
        if not cache.deployment.owned:  # our own server reports its death itself, and a reading would start it anew
            await cache.deployment.snapshot()
    except UnreachableError:
        return CacheDiedError(f"{cache.name} died, or hangs, in the middle of the change: it no longer answers; {last_known}")
    except LMCacheToolError:
        pass  # something answers there
    return OutcomeUnknownError(f"{_cause(error)}; {last_known}")
