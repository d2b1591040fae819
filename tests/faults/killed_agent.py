"""An agent in a process of its own that is killed at one call of a change; another goes on from what it had written down."""

import asyncio
import json
import multiprocessing
import multiprocessing.process
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
from fault_proxy import Call, Fault
from faulted_change import Scene, gaps

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.changes.log import stories
from agent_tools.deployments.server.arenas import arena_file
from agent_tools.errors import LMCacheToolError, StalePlanError, UnknownChangeError
from agent_tools.io_loop import io_loop
from agent_tools.models import ChangeResult, ConfigUpdate, Plan
from agent_tools.operations import Operations

KILLED = -9
PRELOAD = ["killed_agent", "killed_graph", "full_disk"]
"""Modules that each new process finds imported."""
ONCE = ("POST /reconfigure/dax/l1/add", "POST /agent-tools/l2/adapters")
"""Calls that would double something when repeated."""
Process = Callable[..., None]


def change_and_undo(settings: Settings, update: ConfigUpdate, folder: Path) -> None:
    """Plan, apply, undo; each is written to a file when it is done, and is not done again when the file is there."""
    io_loop.run(_change_and_undo, Operations(Registry(settings)), update, folder)


async def _change_and_undo(operations: Operations, update: ConfigUpdate, folder: Path) -> None:
    plan, change, end = folder / "plan", folder / "change", folder / "end"
    try:
        if not plan.exists():
            _write(plan, (await operations.plan("prod", update, "a test wants it")).model_dump_json())
        if not change.exists():
            done = await operations.apply(Plan.model_validate_json(plan.read_bytes()), "test")
            _write(change, done.model_dump_json())
        change_id = ChangeResult.model_validate_json(change.read_bytes()).change_id
        await operations.undo("prod", change_id, "test")
        _write(end, json.dumps([None, ""]))
    except LMCacheToolError as error:
        _write(end, json.dumps([type(error).__name__, str(error)]))
    await operations.close()


def _write(file: Path, text: str) -> None:
    """All of it or nothing."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


async def run(process: Process, *arguments: Any, started: Callable[[Any], None] = lambda _: None) -> int | None:
    """Run it in a process of its own; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    child = context.Process(target=process, args=arguments)
    await anyio.to_thread.run_sync(child.start)
    started(child)
    await anyio.to_thread.run_sync(child.join)
    return child.exitcode


async def killed_at(scene: Scene, call: Call, fault: Fault, process: Process, *arguments: Any) -> bool:
    """Run it until it is killed at this call; whether it was."""
    await scene.proxy.open()
    child: list[multiprocessing.process.BaseProcess] = []

    def kill() -> None:
        child[0].kill()

    scene.proxy.arm(call, fault, kill=kill)
    code = await run(process, *arguments, started=child.append)
    scene.proxy.mend()
    return code == KILLED


async def trial(scene: Scene, call: Call, fault: Fault) -> tuple[str, list[str]]:
    """(how the second process ended, all that does not hold afterwards)."""
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        folder = Path(name)
        arguments = scene.settings(folder / "state"), scene.update, folder
        killed = await killed_at(scene, call, fault, change_and_undo, *arguments)
        await run(change_and_undo, *arguments)
        error, text = json.loads((folder / "end").read_text())
        wrong = [] if killed else ["it was not killed"]
        if error == UnknownChangeError.__name__ and "is not in force any more" in text and text.rstrip(".").endswith("undone)"):
            error = None  # the first one was killed after the undo was on record
        if error not in {None, StalePlanError.__name__}:
            wrong.append(f"{error}: {text}")
        wrong += await aftermath(scene, folder / "state", done=error is None)
        return error or "went on to the end", wrong


async def aftermath(scene: Scene, state_folder: Path, *, done: bool) -> list[str]:
    """Nothing was done twice, what is in force can be undone by the record, and no memory is lost for good."""
    wrong = [f"sent twice: {once}" for once in ONCE if scene.proxy.changes.count(once) > 1]
    now = await scene.in_force()
    if done and now != scene.first:
        wrong.append(f"undone, and in force is {now}")
    async with scene.agent(state_folder) as operations:
        if now != scene.first:
            log = stories(await operations.changes())
            await operations.undo("prod", log[0][0].change_id, "test")
        if (now := await scene.in_force()) != scene.first:
            wrong.append(f"after the undo, in force is {now}")
        wrong += [gap async for gap in gaps(operations, killed=True)]
    await asyncio.to_thread(_age, scene.arenas)
    async with arena_file(scene.arenas, 4096):  # removes what was left
        pass
    if left := list(scene.arenas.iterdir()):
        wrong.append(f"left behind: {left}")
    scene.proxy.heal()
    return wrong


def _age(folder: Path) -> None:
    """Let the files that were left be many hours old."""
    for file in folder.iterdir():
        os.utime(file, (0, 0))
