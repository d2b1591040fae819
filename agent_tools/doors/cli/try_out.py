"""The commands that try it all out on a private cache."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ExitCode
from .running import interruptible, reported_errors


def demo(
    trace: Annotated[
        Path | None, typer.Option(help="Replay this workload (Mooncake format or lookup-hash log) instead of a generated one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated workload.")] = 0,
    skip_bad_lines: Annotated[bool, typer.Option(help="Leave out broken lines of the trace.")] = False,
    pass_seconds: Annotated[float, typer.Option(min=5, max=600, help="Length of each of the two passes of traffic, s.")] = 35,
) -> None:
    """Tune a real, private LMCache under real traffic.

    The exit code is 0 only if the change was verified to help.
    """
    with reported_errors():
        from agent_tools.caches.settings import Settings
        from agent_tools.demo import small
        from agent_tools.demo.small_terminal import print_demo, run_demo_at_terminal
        from agent_tools.tuning.terminal import say

        workload = (
            small.recorded_workload(trace, pass_seconds, skip_bad_lines=skip_bad_lines)
            if trace
            else small.agent_workload(seed, pass_seconds)
        )
        say(workload.description)
        settings = small.settings_for(workload, Settings.load().state_folder / "demo")
        result = interruptible(lambda: run_demo_at_terminal(workload, settings))
        print_demo(result)
        raise typer.Exit(0 if result.verified and not result.corrupt_chunks else ExitCode.FAILED)


def demo_engine(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the report and the picture.")] = None,
    conversations: Annotated[int, typer.Option(min=2, help="Conversations in progress at a time.")] = 8,
    turns: Annotated[int, typer.Option(min=2, help="Requests of each conversation.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the conversations.")] = 0,
) -> None:
    """Tune the cache under a real vLLM on this CPU.

    The exit code is 0 only if the change was verified to help. `make demo-engine` installs what it needs.
    """
    with reported_errors():
        from agent_tools.caches.settings import Settings
        from agent_tools.demo.engine.chat_traffic import ChatTraffic
        from agent_tools.demo.engine.terminal import run_engine_demo

        traffic = ChatTraffic(conversations=conversations, turns=turns, seed=seed)
        folder = Settings.load().state_folder / "engine-demo"
        verified = interruptible(lambda: run_engine_demo(traffic, folder, output or folder))
        raise typer.Exit(0 if verified else ExitCode.FAILED)
