"""`tune_cache` in a process of its own that is killed at one call; another resumes it from its checkpoint, or has none."""

import json
import tempfile
from pathlib import Path
from typing import Any

from fault_proxy import Fault
from faulted_change import Scene
from killed_agent import aftermath, killed_at, run
from langgraph.checkpoint.sqlite import SqliteSaver

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.io_loop import io_loop
from agent_tools.models import Mode
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext
from agent_tools.tuning.tune_cache import build_tune_cache

CONTEXT = TuneContext(cache="prod", mode=Mode.AUTO, window_seconds=0, verify_seconds=0.3)
LEFT_ALONE = ("was last changed", "has changed since")
"""Why a run may end without an action."""
THREAD: Any = {"configurable": {"thread_id": "1"}}


def tune(settings: Settings, folder: Path) -> None:
    """Run the graph, or go on with it where the checkpoint in the folder says; its report is written to a file."""
    operations = Operations(Registry(settings))
    with SqliteSaver.from_conn_string(str(folder / "checkpoint")) as saver:
        graph = build_tune_cache(operations=operations).compile(checkpointer=saver)
        begun = bool(graph.get_state(THREAD).next)
        report = graph.invoke(None if begun else {"tune_reason": "test"}, THREAD, context=CONTEXT)["tune_report"]
    (folder / "report").write_text(json.dumps({"begun": begun, **report}))
    io_loop.run(operations.close)


async def rehearsed(scene: Scene) -> list[str]:
    """The calls of a run that nothing spoils; the change is undone."""
    scene.first = await scene.in_force()
    scene.proxy.heal()
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        folder = Path(name)
        await run(tune, scene.settings(folder / "state"), folder)
        calls, report = list(scene.proxy.calls), json.loads((folder / "report").read_text())
        wrong = await aftermath(scene, folder / "state", done=False)
    if report["outcome"] != "kept_undecided" or wrong:
        raise RuntimeError(f"{report}: {wrong}")
    return calls


async def trial(scene: Scene, call: int, fault: Fault, *, lost: bool) -> tuple[str, list[str]]:
    """(how the second run ended, all that does not hold afterwards); the checkpoint is lost in between if so wanted."""
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        folder = Path(name)
        arguments = scene.settings(folder / "state"), folder
        wrong = [] if await killed_at(scene, call, fault, tune, *arguments) else ["it was not killed"]
        if lost:
            _lose(folder)
        await run(tune, *arguments)
        report = json.loads((folder / "report").read_text())
        if lost and report["begun"]:
            wrong.append("it went on without a checkpoint")
        if report["outcome"] == "failed" and not any(why in report["summary"] for why in LEFT_ALONE):
            wrong.append(report["summary"])
        wrong += await aftermath(scene, folder / "state", done=False)
        return report["outcome"], wrong


def _lose(folder: Path) -> None:
    for file in folder.glob("checkpoint*"):
        file.unlink()
