"""The tools for planned and past changes. They only read."""

from typing import Annotated, Any

from pydantic import Field

from agent_tools.changes.log import stories
from agent_tools.models import ChangeRecord, ConfigUpdate, Plan
from agent_tools.plain import MESSAGE, plain

from .schema import Compact
from .spec import READ, CacheArguments, Operations, ToolSpec


class PlanArguments(CacheArguments):
    """The settings to change."""

    update: Annotated[ConfigUpdate, Compact()]
    """The settings to change and no others, e.g. {"max_size_mb": 512}."""


class ReadyPlanArguments(PlanArguments):
    """Settings to change, and why."""

    reason: Annotated[str, Field(max_length=500)] = "planned only"
    """Why the change is wanted."""


class HistoryArguments(CacheArguments):
    """How many past changes to list."""

    limit: Annotated[int, Field(ge=1, le=100)] = 10
    """List at most this many changes, the latest first."""


async def plan_update(operations: Operations, arguments: ReadyPlanArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_plan_update`. The artifact is a `Plan`."""
    plan = await operations.plan(arguments.cache, arguments.update, arguments.reason)
    return describe_plan(plan), plan.model_dump(mode="json")


async def list_changes(operations: Operations, arguments: HistoryArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_list_changes`. The artifact is ``{"changes": [[ChangeRecord, ...], ...]}``.

    Each inner list holds the log lines of one change. The latest change comes first.
    """
    every = stories(await operations.changes(arguments.cache))
    latest = every[: arguments.limit]
    older = f"\n{len(every) - len(latest)} older changes are not shown" if len(every) > len(latest) else ""
    content = "\n".join(map(describe_change, latest)) or f"these tools have never changed {arguments.cache}"
    unread = "".join(f"\nnot complete: {problem}" for problem in await operations.log_problems())
    return content + older + unread, {"changes": [[line.model_dump(mode="json") for line in story] for story in latest]}


def describe_plan(plan: Plan) -> str:
    """Return a plan as a few lines of text."""
    lines = [
        f"{plan.plan_id} would change {plan.cache}: {plan}",
        f"cached data lost: {plan.loses}" if plan.loses else "no cached data is lost",
    ]
    if plan.command is not None:
        lines.append(f"only the operator can apply it, by starting the server with: {plain(plan.command, MESSAGE)}")
    return "\n".join([*lines, f"plan_fingerprint: {plan.fingerprint}", "nothing was changed"])


def describe_change(story: list[ChangeRecord]) -> str:
    """Return one change as a line: what was changed, and the outcome."""
    first = story[0]
    what = "; ".join(map(str, first.changes)) or "entries"
    undoes = f" of {first.undoes}" if first.undoes else ""
    became = ", ".join(line.outcome.value for line in story[1:]) or "outcome unknown"
    return (
        f"{first.change_id} at {first.recorded_at:%Y-%m-%d %H:%M:%S} UTC: {first.operation}{undoes}: {what}: {became}"
        f" (by {plain(first.actor)}: {first.reason})"
    )


CHANGES = (
    ToolSpec(
        name="plan_update",
        title="Plan a change",
        description="Show what an update of settings would change and cost, and whether the operator allows it. Changes nothing."
        " Pass its plan_fingerprint to lmcache_update_config together with the same update.",
        arguments=ReadyPlanArguments,
        run=plan_update,
        hints=READ,
    ),
    ToolSpec(
        name="list_changes",
        title="History of changes",
        description="List the changes of a cache, the latest first: what was changed, why, by whom, and whether it helped."
        " Returns the change_id for lmcache_undo_change.",
        arguments=HistoryArguments,
        run=list_changes,
        hints=READ,
    ),
)
