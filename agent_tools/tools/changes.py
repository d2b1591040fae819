"""The tools for planned and past changes. They only read."""

from typing import Annotated, Any

from pydantic import Field

from agent_tools.changes.log import stories
from agent_tools.models import ChangeRecord, ConfigUpdate, Gain, Plan, Verification
from agent_tools.plain import plain, points

from .schema import Compact
from .spec import READ, Arguments, CacheArguments, Operations, ToolSpec


class PlanArguments(CacheArguments):
    """The settings to change."""

    update: Annotated[ConfigUpdate, Compact()]
    """The settings to change and no others, e.g. {"max_size_mb": 512}."""


class ReadyPlanArguments(PlanArguments):
    """Settings to change, and why."""

    reason: Annotated[str, Field(max_length=500)] = "planned only"
    """Why the change is wanted."""


class VerifyArguments(Arguments):
    """The change to verify, and how long that may take."""

    change_id: Annotated[str, Field(min_length=1, examples=["change-1f0c9a2b"])]
    """The change_id that lmcache_update_config, lmcache_tune or lmcache_list_changes returned."""
    verify_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """The most seconds to wait until the cache has seen as much traffic as before the change."""
    cache: Annotated[str, Field(min_length=1)] | None = None
    """Name of the cache. Leave out to take the cache that the change log names."""


class HistoryArguments(CacheArguments):
    """How many past changes to list."""

    limit: Annotated[int, Field(ge=1, le=100)] = 10
    """List at most this many changes, the latest first."""


async def plan_update(operations: Operations, arguments: ReadyPlanArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_plan_update`. The artifact is a `Plan`."""
    plan = await operations.predicted_plan(arguments.cache, arguments.update, arguments.reason)
    return f"{describe_plan(plan)}\nnothing was changed", plan.model_dump(mode="json")


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


async def verify_change(operations: Operations, arguments: VerifyArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_verify_change`. The artifact is a `Verification`."""
    found = await operations.verify_change(arguments.change_id, arguments.verify_seconds, arguments.cache)
    return describe_verification(found), found.model_dump(mode="json") | {"keep": found.keep}


def describe_verification(found: Verification) -> str:
    """Return a verification as a few lines of text: the verdict and what to do, then what was predicted and measured."""
    advice = "keep it" if found.keep else f"undo it: {found.change_id}"
    return "\n".join(
        (
            f"{found.verdict.value}: {advice}",
            f"predicted {_gain(found.predicted)}; measured {_gain(found.gain)}",
            f"before the change: {found.before.window.span}; after it: {found.after.window.span}",
            found.why,
        )
    )


def _gain(gain: Gain | None) -> str:
    """Return a gain with its interval, in points of the token hit rate."""
    if gain is None:
        return "unknown"
    return f"{points(gain.estimate)} ({points(gain.lower)} to {points(gain.upper)})"


def describe_plan(plan: Plan) -> str:
    """Return a plan as a few lines of text: old -> new, what is predicted, what it costs."""
    lines = [
        f"{plan.plan_id} would change {plan.cache}: {plan}",
        "predicted: unknown (nothing to predict from)" if plan.predicted is None else f"predicted: {_gain(plan.predicted)}",
        f"cost: {'; '.join(_costs(plan))}",
    ]
    if plan.command is not None:
        lines.append("only the operator can apply it, by a restart; what to start it with is in the artifact, for them")
    return "\n".join([*lines, f"plan_fingerprint: {plan.fingerprint}"])


def _costs(plan: Plan) -> list[str]:
    """Return what a plan costs: memory, and cached data."""
    sizes = {one.setting: one.new - one.old for one in plan.changes if one.setting == "max_size_mb" and one.old is not None}
    memory = [f"{size:+,.0f} MB of memory" for size in sizes.values()] or ["no memory"]
    return [*memory, plan.loses or "no cached data is lost"]


def describe_change(story: list[ChangeRecord]) -> str:
    """Return one change as a line: what was changed, and the outcome."""
    first = story[0]
    what = "; ".join(map(str, first.changes)) or "entries"
    undoes = f" of {first.undoes}" if first.undoes else ""
    became = ", ".join(map(_outcome, story[1:])) or "outcome unknown"
    return (
        f"{first.change_id} at {first.recorded_at:%Y-%m-%d %H:%M:%S} UTC: {first.operation}{undoes}: {what}: {became}"
        f" (by {plain(first.actor)}: {first.reason})"
    )


def _outcome(line: ChangeRecord) -> str:
    """Return what became of a change. A verification says what it found."""
    if line.verdict is None:
        return line.outcome.value
    return f"verified as {line.verdict.value}, {_gain(line.gain)} (predicted {_gain(line.predicted)})"


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
    ToolSpec(
        name="verify_change",
        title="Verify a change",
        description="Say whether a change helped, also one made by hand: the predicted and the measured gain with its interval,"
        " and whether to keep or undo it. Waits up to verify_seconds for traffic. Only notes the verdict in the change log,"
        " unless the caller may only read.",
        arguments=VerifyArguments,
        run=verify_change,
        hints=READ,
    ),
)
