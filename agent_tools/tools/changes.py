"""The tools that tell of changes, those that could be made and those that were; they only read."""

from typing import Annotated, Any

from pydantic import Field

from agent_tools.changes.log import stories
from agent_tools.models import ChangeRecord, ConfigUpdate, Plan
from agent_tools.plain import MESSAGE, plain

from .spec import READ, CacheArguments, Operations, ToolSpec


class PlanArguments(CacheArguments):
    """Settings to change."""

    update: ConfigUpdate
    """Only the settings to change, e.g. {"max_size_mb": 512}."""


class HistoryArguments(CacheArguments):
    """How far to look back."""

    limit: Annotated[int, Field(ge=1, le=100)] = 10
    """At most so many changes, the latest ones."""


async def plan_update(operations: Operations, arguments: PlanArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_plan_update`: artifact a `Plan`."""
    plan = await operations.plan(arguments.cache, arguments.update, "planned only")
    return describe_plan(plan), plan.model_dump(mode="json")


async def list_changes(operations: Operations, arguments: HistoryArguments) -> tuple[str, dict[str, Any]]:
    """`lmcache_list_changes`: artifact ``{"changes": [[ChangeRecord, ...], ...]}``, a list for each change, the latest first."""
    every = stories(await operations.changes(arguments.cache))
    latest = every[: arguments.limit]
    older = f"\n{len(every) - len(latest)} older ones not shown" if len(every) > len(latest) else ""
    content = "\n".join(map(describe_change, latest)) or f"{arguments.cache} was never changed by these tools"
    return content + older, {"changes": [[line.model_dump(mode="json") for line in story] for story in latest]}


def describe_plan(plan: Plan) -> str:
    """A plan in a few lines."""
    lines = [f"{plan.plan_id} would change {plan.cache}: {plan}", f"it loses: {plan.loses or 'nothing'}"]
    if plan.command is not None:
        lines.append(f"only the operator can do it, by starting: {plain(plan.command, MESSAGE)}")
    return "\n".join([*lines, f"plan_fingerprint: {plan.fingerprint}", "nothing was changed"])


def describe_change(story: list[ChangeRecord]) -> str:
    """One change in a line: what it was, and what became of it."""
    first = story[0]
    what = "; ".join(map(str, first.changes)) or "entries"
    undoes = f" of {first.undoes}" if first.undoes else ""
    became = ", ".join(line.outcome.value for line in story[1:]) or "outcome unknown"
    return (
        f"{first.change_id} at {first.recorded_at:%Y-%m-%d %H:%M:%S} UTC: {first.operation}{undoes}: {what}: {became}"
        f" (by {first.actor}: {first.reason})"
    )


CHANGES = (
    ToolSpec(
        name="plan_update",
        title="Plan a change",
        description="What an update of settings would change and cost, and whether the operator allows it. Changes nothing. Pass"
        " its plan_fingerprint to lmcache_update_config with the same update.",
        arguments=PlanArguments,
        run=plan_update,
        hints=READ,
    ),
    ToolSpec(
        name="list_changes",
        title="History of changes",
        description="The latest changes of a cache, latest first: what, why, by whom, whether it helped. Gives the change_id that"
        " lmcache_undo_change takes.",
        arguments=HistoryArguments,
        run=list_changes,
        hints=READ,
    ),
)
