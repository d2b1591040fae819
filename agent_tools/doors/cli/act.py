"""The commands that plan, make, verify and undo changes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    DEFAULT,
    ArenaFolder,
    AsJson,
    CacheName,
    CacheOfChange,
    ChangeId,
    ExitCode,
    MaxSize,
    Reason,
    Url,
    VerifySeconds,
    Yes,
)
from .running import ACTOR, agreed, opened, show

if TYPE_CHECKING:
    from agent_tools.models import ChangeResult
    from agent_tools.operations import Operations


def _each_once(assignments: list[str]) -> list[str]:
    """Refuse what is no assignment, and a setting given twice. No typer callback: Python 3.10 refuses `list[str]` in one."""
    names = [assignment.partition("=")[0] for assignment in assignments]
    for name, assignment in zip(names, assignments, strict=True):
        if not name or "=" not in assignment:
            raise typer.BadParameter(f"{assignment!r} is not NAME=VALUE; write for example max_size_mb=2048")
        if names.count(name) > 1:
            raise typer.BadParameter(f"{name} is given twice; give each setting once")
    return assignments


Assignments = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME=VALUE...",
        help="Settings to change, e.g. max_size_mb=2048. A list or a mapping is written as JSON.",
        show_default=False,
    ),
]


def plan(
    assignments: Assignments,
    cache: CacheName = DEFAULT,
    url: Url = None,
    reason: Reason = "planned only",
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show what a change of settings would do and cost. Change nothing."""
    with opened(cache, url, max_size_mb=max_size_mb, arena_folder=arena_folder) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.models.assignments import update_of

        found = io_loop.run(operations.predicted_plan, name, update_of(_each_once(assignments)), reason)
        show(found.model_dump(mode="json"), f"{_with_command(found)}\nnothing was changed", as_json)


def set_(  # noqa: PLR0913, PLR0917  the options of a command
    assignments: Assignments,
    cache: CacheName = DEFAULT,
    url: Url = None,
    reason: Reason = "set by hand",
    observe: Annotated[
        float, typer.Option(min=0, help="Seconds to observe before the change, for `verify` without an access log.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing, like `plan`.")] = False,
    yes: Yes = False,
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    as_json: AsJson = False,
) -> None:
    """Change settings, after showing the plan and asking.

    After the change the settings are read back. The last lines say how to verify the change and how to undo it.
    """
    if dry_run:
        plan(assignments, cache, url, reason, max_size_mb, arena_folder, as_json)
        return
    with opened(cache, url, max_size_mb=max_size_mb, arena_folder=arena_folder) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.models.assignments import update_of
        from agent_tools.tools.act import changed
        from agent_tools.tuning.terminal import Steps, err, say

        found = io_loop.run(operations.predicted_plan, name, update_of(_each_once(assignments)), reason)
        say(_with_command(found), err)
        if found.command is not None:
            raise typer.Exit(ExitCode.A_PERSON_MUST_ACT)
        if not agreed("Apply?", yes):
            say("not approved; give --yes to change settings without being asked. Nothing was changed", err)
            raise typer.Exit(ExitCode.A_PERSON_MUST_ACT)
        with Steps() as steps:
            before = io_loop.run(operations.baseline, name, observe, steps) if observe else None
            result = io_loop.run(operations.apply, found, ACTOR, steps, before)
        show(result.model_dump(mode="json"), f"{changed(result)[0]}\n{how_to_go_on(operations, result, url)}", as_json)


def verify(
    change_id: ChangeId,
    cache: CacheOfChange = None,
    url: Url = None,
    patience: VerifySeconds = 120,
    as_json: AsJson = False,
) -> None:
    """Say whether a change helped.

    The traffic from now on is compared with the figures that were recorded when the change was made.
    """
    with opened(cache, url) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.models import VerificationVerdict
        from agent_tools.tools.changes import describe_verification
        from agent_tools.tuning.terminal import Steps

        with Steps() as steps:
            found = io_loop.run(operations.verify_change, change_id, patience, name, steps)
        show(found.model_dump(mode="json"), describe_verification(found), as_json)
        raise typer.Exit(0 if found.verdict is VerificationVerdict.BETTER else ExitCode.A_PERSON_MUST_ACT)


def undo(
    change_id: ChangeId,
    cache: CacheOfChange = None,
    url: Url = None,
    reason: Reason = "",
    arena_folder: ArenaFolder = None,
    as_json: AsJson = False,
) -> None:
    """Set back what one change of settings set.

    The undo is on record too, and can be undone.
    """
    with opened(cache, url, arena_folder=arena_folder) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.tools.act import changed
        from agent_tools.tuning.terminal import Steps

        with Steps() as steps:
            result = io_loop.run(operations.undo, name, change_id, ACTOR, steps, reason)
        show(result.model_dump(mode="json"), f"{changed(result)[0]}\n{how_to_go_on(operations, result, url)}", as_json)


def optimize(
    cache: CacheName = DEFAULT,
    url: Url = None,
    to: Annotated[float, typer.Option(min=0.01, max=99.99, help="Percent of L1 that may stay in use.")] = 60,
    reason: Reason = "by hand",
    as_json: AsJson = False,
) -> None:
    """Remove the least recently used entries from L1.

    No setting is changed. Removed entries cannot be restored.
    """
    with opened(cache, url) as (operations, name):
        from agent_tools.io_loop import io_loop

        result = io_loop.run(operations.optimize, name, to, ACTOR, reason)
        show(result.model_dump(mode="json"), result.message, as_json)


def clear(
    cache: CacheName = DEFAULT, url: Url = None, reason: Reason = "by hand", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Remove everything from L1.

    Requests are recomputed until L1 is full again. Removed entries cannot be restored.
    """
    with opened(cache, url) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.tuning.terminal import err, say

        if not agreed(f"Remove everything from L1 of {name}?", yes):
            say("not approved; give --yes to clear without being asked. Nothing was removed", err)
            raise typer.Exit(ExitCode.A_PERSON_MUST_ACT)
        result = io_loop.run(operations.clear, name, ACTOR, reason)
        show(result.model_dump(mode="json"), result.message, as_json)


def _with_command(plan: Any) -> str:  # noqa: ANN401  a `Plan`, imported where it is used
    """Return a plan as text for the operator, with the command line that a restart takes."""
    from agent_tools.tools.changes import describe_plan

    return describe_plan(plan) + (f"\n{plan.for_the_operator}" if plan.command else "")


def how_to_go_on(operations: "Operations", result: "ChangeResult", url: str | None) -> str:
    """Return the commands that verify and undo a change, or that a private cache ends with this command."""
    cache, change_id = result.plan.cache, result.change_id
    registry = operations.registry
    if cache in registry.names and registry.settings_of(cache).private:
        return f"Change id: {change_id}\n{cache} is a private cache: it ends with this command, and its settings with it"
    where = f" --url {url}" if url else ""
    return (
        f"Change id: {change_id}\n"
        f"To verify it: lmcache-agent verify {change_id}{where}\n"
        f"To undo it: lmcache-agent undo {change_id}{where}"
    )
