"""The tools that change a cache."""

from typing import Annotated, Any

from pydantic import Field

from agent_tools.models import CacheOptimizationResult, ChangeResult

from .changes import PlanArguments
from .spec import CHANGE, CacheArguments, Hints, Operations, ToolSpec

ACTOR = "tool"


class ReasonArguments(CacheArguments):
    """A cache, and why it is to be changed."""

    reason: Annotated[str, Field(min_length=3, max_length=500)]
    """Why: the figures that call for it. Goes into the change log."""


class UpdateArguments(PlanArguments, ReasonArguments):
    """Settings to change, why, and the plan that is followed."""

    plan_fingerprint: str | None = None
    """The plan_fingerprint of lmcache_plan_update: a cache that has changed since then is left alone, and another
    update than the plan's is refused."""


class UndoArguments(CacheArguments):
    """Which change to take back."""

    change_id: Annotated[str, Field(min_length=1, examples=["change-1f0c9a2b"])]
    """Its id, as lmcache_update_config or lmcache_list_changes gave it."""


class OptimizeArguments(ReasonArguments):
    """How far to empty a cache."""

    target_utilization_percent: Annotated[float, Field(gt=0, lt=100)] = 60.0
    """Least recently used entries are dropped until at most so much of L1 is used, percent."""


async def update_config(operations: Operations, arguments: UpdateArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_update_config`: artifact a `ChangeResult`."""
    plan = await operations.plan(arguments.cache, arguments.update, arguments.reason, fingerprint=arguments.plan_fingerprint)
    return changed(await operations.apply(plan, ACTOR))


async def undo_change(operations: Operations, arguments: UndoArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_undo_change`: artifact a `ChangeResult`."""
    return changed(await operations.undo(arguments.cache, arguments.change_id, ACTOR))


async def optimize(operations: Operations, arguments: OptimizeArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_optimize`: artifact a `CacheOptimizationResult`."""
    result = await operations.optimize(arguments.cache, arguments.target_utilization_percent, ACTOR, arguments.reason)
    return _told(result)


async def clear_cache(operations: Operations, arguments: ReasonArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_clear_cache`: artifact a `CacheOptimizationResult`."""
    return _told(await operations.clear(arguments.cache, ACTOR, arguments.reason))


def changed(result: ChangeResult) -> tuple[str, dict[str, Any]]:
    """Content and artifact of a change that was made."""
    return f"Changed {result.message}. To take it back: {result.undo}.", result.model_dump(mode="json")


def _told(result: CacheOptimizationResult) -> tuple[str, dict[str, Any]]:
    return result.message, result.model_dump(mode="json")


ACT = (
    ToolSpec(
        name="update_config",
        title="Change cache settings",
        description="Change settings of a cache within the operator's bounds; the change is recorded and can be undone. Call"
        " lmcache_recommend and lmcache_plan_update first.",
        arguments=UpdateArguments,
        run=update_config,
        hints=CHANGE,
    ),
    ToolSpec(
        name="undo_change",
        title="Undo a change",
        description="Set back what one change of settings set, by its change_id. The undo is recorded as a change of its own.",
        arguments=UndoArguments,
        run=undo_change,
        hints=CHANGE,
    ),
    ToolSpec(
        name="optimize",
        title="Drop cold cache entries",
        description="Drop least recently used entries of a cache without changing a setting, to relieve one whose stores fail"
        " while nothing is evicted. Dropped entries cannot be restored.",
        arguments=OptimizeArguments,
        run=optimize,
        hints=CHANGE,
    ),
    ToolSpec(
        name="clear_cache",
        title="Clear the cache",
        description="Remove everything from L1 of a cache. Requests are recomputed until it is full again; it cannot be undone.",
        arguments=ReasonArguments,
        run=clear_cache,
        hints=Hints(read_only=False, destructive=True, idempotent=True),
    ),
)
