"""Two agents, each a process of its own, that change one real server at the same moment, again and again."""

import json
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import httpx

from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.log import stories
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, ChangeOutcome, ConfigUpdate
from agent_tools.operations import Operations

AGENTS, ROUNDS = 2, 6
WON = "won"
CLEAR = ("another change of prod is under way; wait until it is done. Nothing was changed", "has changed since")
"""What an agent is told whose change comes while the other's is under way, or after it."""


def agent(number: int, settings: Settings, together: Barrier, folder: Path) -> None:
    """In each round: plan for the same state as the other, then apply at the same moment as the other."""
    io_loop.run(_agent, number, Operations(Registry(settings)), together, folder)


async def _agent(number: int, operations: Operations, together: Barrier, folder: Path) -> None:
    told = []
    for one in range(ROUNDS):
        together.wait(30)
        plan = await operations.plan("prod", ConfigUpdate(max_size_mb=20 + AGENTS * one + number), f"agent {number}")
        together.wait(30)
        try:
            await operations.apply(plan, f"agent {number}")
            told.append(WON)
        except LMCacheToolError as error:
            told.append(f"{error.code}: {error}")
    await operations.close()
    (folder / f"{number}.json").write_text(json.dumps(told))


def l1_mb(url: str) -> float:
    """As the server itself says."""
    arenas = httpx.get(f"{url}/reconfigure/dax/l1/status", trust_env=False).json()["arenas"]
    return float(sum(one["size_in_bytes"] for one in arenas if one["state"] == "active") / MB)


def test_of_two_changes_at_once_one_wins_the_other_is_told_and_the_log_explains_what_is_in_force(
    server: ServerProcess, cache: Cache, arena_folder: Path, tmp_path: Path
) -> None:
    prod = CacheSettings(target=server.http_url, arena_folder=arena_folder, bounds=Bounds(max_size_mb=64))
    settings = Settings(caches={"prod": prod}, state_folder=tmp_path / "state")
    context = multiprocessing.get_context("forkserver")
    together = context.Barrier(AGENTS)
    agents = [context.Process(target=agent, args=(number, settings, together, tmp_path)) for number in range(AGENTS)]
    for one in agents:
        one.start()
    for one in agents:
        one.join(90)
    assert [one.exitcode for one in agents] == [0, 0]
    told = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(AGENTS)]
    for first, second in zip(*told, strict=True):
        assert (first == WON) + (second == WON) == 1, (first, second)
        lost = second if first == WON else first
        assert any(words in lost for words in CLEAR), lost
        assert "Nothing was changed" in lost

    operations = Operations(Registry(settings))
    log = list(reversed(stories(io_loop.run(operations.changes))))
    io_loop.run(operations.close)
    assert [[record.outcome for record in story] for story in log] == [[ChangeOutcome.STARTED, ChangeOutcome.APPLIED]] * ROUNDS
    sizes = [(story[0].changes[0].old, story[0].changes[0].new) for story in log]
    assert [old for old, _ in sizes] == [16, *(new for _, new in sizes[:-1])]
    assert l1_mb(server.http_url) == sizes[-1][1]
