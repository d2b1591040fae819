"""The tools that change a cache."""

from typing import Annotated, Any

from pydantic import Field

from agent_tools.models import CacheOptimizationResult, ChangeResult, ConfigUpdate

from .changes import PlanArguments
from .schema import Compact
from .spec import CHANGE, Arguments, CacheArguments, Hints, Operations, ToolSpec

ACTOR = "tool"


class ReasonArguments(CacheArguments):
    """A cache, and the reason for changing it."""

    reason: Annotated[str, Field(min_length=3, max_length=500)]
    """Why the cache is changed: the figures that call for it. The change log records the reason."""


class UpdateArguments(PlanArguments, ReasonArguments):
    """The settings to change, the reason, and optionally the plan to follow."""

    update: Annotated[ConfigUpdate, Compact(described=False)]
    """The settings to change and no others, as lmcache_plan_update describes them."""
    plan_fingerprint: str | None = None
    """The plan_fingerprint from lmcache_plan_update. The change is refused if the cache has changed since the plan was made, or
    if the update differs from the plan."""


class UndoArguments(Arguments):
    """The change to undo."""

    cache: Annotated[str, Field(min_length=1)] | None = None
    """Name of the cache. Leave out to take the cache that the change log names."""
    reason: Annotated[str, Field(max_length=500)] = ""
    """Why; goes into the change log."""

    change_id: Annotated[str, Field(min_length=1, examples=["change-1f0c9a2b"])]
    """The change_id that lmcache_update_config or lmcache_list_changes returned."""


class OptimizeArguments(ReasonArguments):
    """How full L1 may be after the cold entries are dropped."""

    target_utilization_percent: Annotated[float, Field(gt=0, lt=100)] = 60.0
    """Target L1 use in percent. The cache drops least recently used entries until L1 use is at most this."""


async def update_config(operations: Operations, arguments: UpdateArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_update_config`. The artifact is a `ChangeResult`."""
    plan = await operations.plan(arguments.cache, arguments.update, arguments.reason, fingerprint=arguments.plan_fingerprint)
    return changed(await operations.apply(plan, ACTOR))


async def undo_change(operations: Operations, arguments: UndoArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_undo_change`. The artifact is a `ChangeResult`."""
    return changed(await operations.undo(arguments.cache, arguments.change_id, ACTOR, reason=arguments.reason))


async def optimize(operations: Operations, arguments: OptimizeArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_optimize`. The artifact is a `CacheOptimizationResult`."""
    result = await operations.optimize(arguments.cache, arguments.target_utilization_percent, ACTOR, arguments.reason)
    return _message(result)


async def clear_cache(operations: Operations, arguments: ReasonArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_clear_cache`. The artifact is a `CacheOptimizationResult`."""
    return _message(await operations.clear(arguments.cache, ACTOR, arguments.reason))


def changed(result: ChangeResult) -> tuple[str, dict[str, Any]]:
    """Return content and artifact for a change that was made."""
    return f"Changed {result.message}. To undo: {result.undo}.", result.model_dump(mode="json")


def _message(result: CacheOptimizationResult) -> tuple[str, dict[str, Any]]:
    return result.message, result.model_dump(mode="json")


ACT = (
    ToolSpec(
        name="update_config",
        title="Change cache settings",
        description="Change cache settings within the operator's bounds. The change is recorded and can be undone. Call"
        " lmcache_recommend and lmcache_plan_update first.",
        arguments=UpdateArguments,
        run=update_config,
        hints=CHANGE,
    ),
    ToolSpec(
        name="undo_change",
        title="Undo a change",
        description="Undo one change of settings, given its change_id. The undo is recorded as a change of its own.",
        arguments=UndoArguments,
        run=undo_change,
        hints=CHANGE,
    ),
    ToolSpec(
        name="optimize",
        title="Drop cold cache entries",
        description="Drop least recently used entries without changing a setting. Use it when stores fail while nothing is"
        " evicted. Dropped entries cannot be restored.",
        arguments=OptimizeArguments,
        run=optimize,
        hints=CHANGE,
    ),
    ToolSpec(
        name="clear_cache",
        title="Clear the cache",
        description="Remove everything from a cache's L1. Prompts are computed again until L1 refills. This cannot be undone.",
        arguments=ReasonArguments,
        run=clear_cache,
        hints=Hints(read_only=False, destructive=True, idempotent=True),
    ),
)
