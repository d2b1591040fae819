"""The tools that change a cache."""

from typing import Annotated, Any

from pydantic import Field

from agent_tools.models import CacheOptimizationResult, ConfigUpdate
from agent_tools.operations import Operations

from .spec import CHANGE, CacheArguments, Hints, ToolSpec

ACTOR = "tool"


class ReasonArguments(CacheArguments):
    """A cache, and why it is to be changed."""

    reason: Annotated[str, Field(min_length=3, max_length=500)]
    """Why: the figures that call for it. Goes into the change log."""


class UpdateArguments(ReasonArguments):
    """Settings to change."""

    update: ConfigUpdate
    """Only the settings to change, e.g. {"max_size_mb": 512}."""
    dry_run: bool = False
    """True: say what would be changed and what it costs, and change nothing."""


class OptimizeArguments(ReasonArguments):
    """How far to empty a cache."""

    target_utilization_percent: Annotated[float, Field(gt=0, lt=100)] = 60.0
    """Least recently used entries are dropped until at most so much of L1 is used, percent."""


async def update_config(operations: Operations, arguments: UpdateArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_update_config`: artifact a `ChangeResult`, or a `Plan` for a dry run."""
    plan = await operations.plan(arguments.cache, arguments.update, arguments.reason)
    if arguments.dry_run:
        loses = f" It loses: {plan.loses}." if plan.loses else ""
        command = f" Only the operator can do it: {plan.command}" if plan.command else ""
        return f"Would change {arguments.cache}: {plan}.{loses}{command} Nothing was changed.", plan.model_dump(mode="json")
    result = await operations.apply(plan, ACTOR)
    return f"Changed {result.message}. To take it back: {result.undo}.", result.model_dump(mode="json")


async def optimize(operations: Operations, arguments: OptimizeArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_optimize`: artifact a `CacheOptimizationResult`."""
    result = await operations.optimize(arguments.cache, arguments.target_utilization_percent, ACTOR, arguments.reason)
    return _told(result)


async def clear_cache(operations: Operations, arguments: ReasonArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_clear_cache`: artifact a `CacheOptimizationResult`."""
    return _told(await operations.clear(arguments.cache, ACTOR, arguments.reason))


def _told(result: CacheOptimizationResult) -> tuple[str, dict[str, Any]]:
    return result.message, result.model_dump(mode="json")


ACT = (
    ToolSpec(
        name="update_config",
        title="Change cache settings",
        description="Change settings of a cache within the operator's bounds; the change is recorded and can be undone. Read"
        " lmcache_recommend first. dry_run=true shows what would happen.",
        arguments=UpdateArguments,
        run=update_config,
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
