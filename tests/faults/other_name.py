"""A second agent that changes the same server under another name, in the middle of the first one's change."""

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from fault_proxy import Call, Fault
from faulted_change import Attempt, Scene, aftermath, attempt, told

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.log import stories
from agent_tools.errors import BusyError
from agent_tools.models import Bounds, ChangeOutcome, ConfigUpdate
from agent_tools.operations import Operations

OTHER = ConfigUpdate(max_size_mb=20)
"""What the second agent wants: a size that is neither the first nor the one the first agent wants."""


async def trial(scene: Scene, call: Call) -> tuple[Attempt, list[str]]:
    """Both changes, one inside the other, and all that does not hold afterwards."""
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        state_folder, wrong = Path(name), list[str]()

        async def change_too() -> None:
            wrong.extend(await _other_agent(scene, state_folder))

        await scene.proxy.open()
        scene.proxy.arm(call, Fault.OTHER_NAME, meanwhile=change_too)
        async with scene.agent(state_folder, 30) as operations:
            done = await attempt(operations, scene.update)
        scene.proxy.heal()
        before = scene.wanted if done.step == "undo" else scene.first
        if done.error is not None or await scene.in_force() != scene.first:
            wrong += [fault async for fault in told(scene, state_folder, done, before)]
        wrong += [fault async for fault in aftermath(scene, state_folder, done)]
    if left := list(scene.arenas.iterdir()):
        wrong.append(f"left behind: {left}")
    return done, wrong


async def _other_agent(scene: Scene, state_folder: Path) -> list[str]:
    """Change and undo under the other name. It must be refused while the first agent's change is under way."""
    settings = CacheSettings(
        target=f"http://localhost:{urlsplit(scene.url).port}",
        arena_folder=scene.arenas,
        module_token=scene.token,
        bounds=Bounds(max_size_mb=24),
        timeout_seconds=10,
    )
    operations = Operations(Registry(Settings(caches={"other": settings}, state_folder=state_folder)))
    try:
        log = stories(await operations.changes())
        under_way = bool(log) and {record.outcome for record in log[0]} == {ChangeOutcome.STARTED}
        now = await scene.in_force()
        plan = await operations.plan("other", OTHER, "a test wants it too")
        try:
            change = await operations.apply(plan, "the other agent")
        except BusyError:
            return [] if await scene.in_force() == now else ["refused as busy, and something changed"]
        await operations.undo("other", change.change_id, "the other agent")
    finally:
        await operations.close()
    return ["two changes were under way at once"] if under_way else []
