"""An agent in a process of its own that cannot write another byte to any file from one call of a change on."""

import multiprocessing
import multiprocessing.process
import resource
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from fault_proxy import Call, Fault
from faulted_change import Attempt, Scene, aftermath, attempt, told
from killed_agent import run

from agent_tools import errors
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.operations import Operations


def change_and_undo(settings: Settings, update: ConfigUpdate, end: Connection) -> None:
    """Plan, apply, undo; say through a pipe how far it came, since no file can be written."""
    operations = Operations(Registry(settings))
    done: Attempt = io_loop.run(attempt, operations, update)
    io_loop.run(operations.close)
    end.send((done.plan, done.change, done.undo, done.error and (type(done.error).__name__, str(done.error))))


async def trial(scene: Scene, call: Call) -> tuple[Attempt, list[str]]:
    """A change whose agent's disk fills up at this call, and all that does not hold afterwards."""
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        state_folder = Path(name) / "state"
        log = state_folder / "changes.jsonl"
        child: list[multiprocessing.process.BaseProcess] = []

        async def fill_up() -> None:
            """What a full disk does: what is there can be written over, and nothing grows."""
            pid, size = child[0].pid, log.stat().st_size if log.exists() else 0
            assert pid is not None  # it runs
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))

        end, other_end = multiprocessing.Pipe(duplex=False)
        await scene.proxy.open()
        scene.proxy.arm(call, Fault.DISK_FULL, meanwhile=fill_up)
        code = await run(change_and_undo, scene.settings(state_folder), scene.update, other_end, started=child.append)
        done = _attempt(end) if end.poll(0) else Attempt(error=RuntimeError(f"the agent ended with {code}"))
        scene.proxy.heal()
        before = scene.wanted if done.step == "undo" else scene.first
        wrong = [fault async for fault in told(scene, state_folder, done, before)]
        wrong += [fault async for fault in aftermath(scene, state_folder, done)]
    if left := list(scene.arenas.iterdir()):
        wrong.append(f"left behind: {left}")
    return done, wrong


def _attempt(end: Connection) -> Attempt:
    """What the agent said of itself."""
    plan, change, undo, failed = end.recv()
    error = None
    if failed is not None:
        kind = getattr(errors, failed[0], RuntimeError)
        error = kind.__new__(kind, failed[1])
    return Attempt(plan, change, undo, error)
