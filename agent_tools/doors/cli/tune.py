"""The commands that observe, change, verify and keep or undo, in one run."""

from typing import Annotated, Any

import typer

from .act import how_to_go_on
from .options import (
    DEFAULT,
    AccessLogFolder,
    ArenaFolder,
    AsJson,
    CacheName,
    ExitCode,
    MaxSize,
    Mode,
    ModeOption,
    Url,
    VerifySeconds,
    WindowSeconds,
)
from .running import ACTOR, opened, show

AUTO = "auto"
LEAST, MOST = 30.0, 600.0
"""Shortest and longest window of ``--window auto``, seconds."""


def _window(text: str) -> str:
    if text != AUTO:
        try:
            wrong = float(text) < 0
        except ValueError:
            wrong = True
        if wrong:
            raise typer.BadParameter(f"{text} is neither a number of seconds greater than or equal to 0, nor {AUTO}")
    return text


def tune(  # noqa: PLR0913, PLR0917  the options of a command
    cache: CacheName = DEFAULT,
    url: Url = None,
    mode: ModeOption = Mode.APPROVE,
    window: Annotated[
        str,
        typer.Option(
            callback=_window,
            metavar="SECONDS|auto",
            help=f"Seconds to observe. auto: until there are enough lookups for advice, {LEAST:g} to {MOST:g} s."
            " 0 takes everything since the cache process started.",
        ),
    ] = AUTO,
    verify_seconds: VerifySeconds = 120,
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    access_log: AccessLogFolder = None,
    as_json: AsJson = False,
) -> None:
    """Observe, recommend, ask, change, verify, undo harm.

    A change that did harm is undone. The last lines give the id of the change and how to undo it.
    """
    with opened(cache, url, max_size_mb=max_size_mb, arena_folder=arena_folder, access_log=access_log) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.models import Mode as AnyMode
        from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
        from agent_tools.tuning.terminal import Steps, run_at_terminal
        from agent_tools.tuning.tune_cache import build_tune_cache

        if window == AUTO:
            with Steps() as steps:
                seconds = io_loop.run(operations.wait_for_traffic, name, LEAST, MOST, steps)
        else:
            seconds = float(window)
        context = TuneContext(cache=name or cache, mode=AnyMode(mode), window_seconds=seconds, verify_seconds=verify_seconds)
        ran = run_at_terminal(build_tune_cache(operations=operations), {"tune_reason": ACTOR}, context)
        report = TuneReport.model_validate(ran["tune_report"])
        lines = [f"{report.outcome.value}: {report.summary}"]
        if report.outcome is Outcome.NEEDS_OPERATOR and report.plan and report.plan.loses:
            lines.append(f"Before you restart it: {report.plan.loses}")
            lines.append(f"Then {report.plan.for_the_operator}")
        if report.change is not None and report.undo is None:
            lines.append(how_to_go_on(operations, report.change, url))
        show(report.model_dump(mode="json"), "\n".join(lines), as_json)
        raise typer.Exit(_exit_code(report.outcome))


def tune_fleet(
    cache: Annotated[
        list[str], typer.Option("--cache", "-c", help="Name of a cache (repeat it). The name of a fleet means all its servers.")
    ],
    mode: ModeOption = Mode.APPROVE,
    window: WindowSeconds = 30,
    verify_seconds: VerifySeconds = 120,
    batch_size: Annotated[int, typer.Option(min=1, help="Servers to change at once, after the first of their group.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Tune many servers, one of each kind first.

    Servers that are set alike form a group. One server of each group is changed first, then the rest in batches. At the first
    change that does harm, the run undoes the change and stops.
    """
    with opened(None) as (operations, _):
        from agent_tools.models import Mode as AnyMode
        from agent_tools.tuning.fleet_state import FleetContext, FleetReport, ServerOutcome
        from agent_tools.tuning.terminal import run_at_terminal
        from agent_tools.tuning.tune_fleet import build_tune_fleet

        context = FleetContext(
            caches=tuple(cache),
            mode=AnyMode(mode),
            window_seconds=window,
            verify_seconds=verify_seconds,
            batch_size=batch_size,
        )
        ran = run_at_terminal(build_tune_fleet(operations=operations), {"fleet_reason": ACTOR}, context)
        report = FleetReport.model_validate(ran["fleet_report"])
        lines = [report.summary]
        lines += [f"{name}: {step.outcome.value}: {step.summary}" for name, step in report.servers.items() if step.outcome]
        lines += [f"{name} was left out: {why}" for name, why in report.left_out.items()]
        show(report.model_dump(mode="json"), "\n".join(lines), as_json)
        failed = any(step.outcome is ServerOutcome.FAILED for step in report.servers.values())
        raise typer.Exit(ExitCode.FAILED if failed else 0)


def _exit_code(outcome: Any) -> int:  # noqa: ANN401  an `Outcome`, imported where it is used
    by_outcome = {"failed": ExitCode.FAILED, "needs_operator": ExitCode.A_PERSON_MUST_ACT, "rejected": ExitCode.A_PERSON_MUST_ACT}
    return by_outcome.get(outcome.value, 0)
