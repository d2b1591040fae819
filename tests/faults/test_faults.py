"""Claims about a change of which one call goes wrong: what is in force is known or told unknown, and it can be undone.

All calls times all faults are `benchmarks/faults.py`; these are the ones that differ most.
"""

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import killed_agent
import pytest
from fault_proxy import Fault, FaultProxy
from faulted_change import Scene, trial
from pydantic import SecretStr

from agent_tools.caches.registry import Cache
from agent_tools.changes import read_back
from agent_tools.deployments.server import module_client as server_module
from agent_tools.deployments.server.arenas import arena_file
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import OutcomeUnknownError, RefusedError
from agent_tools.io_loop import io_loop
from agent_tools.models import ChangeOutcome

ADD = ("POST /reconfigure/dax/l1/add", 1)
POLICIES = ("PUT /agent-tools/l2/policies", 1)
LATE_IN_THE_CHANGE = 30
ATTACH = ("POST /agent-tools/l2/adapters", 1)
READ_BACK = ("GET /agent-tools/l2", 11)
"""The reading after the change: seven are before it, three are in its middle."""
DRAIN = ("POST /reconfigure/dax/l1/remove", 1)
DETACH = ("DELETE /agent-tools/l2/adapters", 1)


@pytest.fixture(scope="module")
def arenas(arena_folder: Path) -> Path:
    """A folder of these tests only, to see what is left there."""
    folder = arena_folder / "faults"
    folder.mkdir()
    return folder


@pytest.fixture
def scene(
    server: ServerProcess,
    module_token: SecretStr,
    cache: Cache,
    arenas: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Scene]:
    """The embedded server by its address, behind a proxy."""
    monkeypatch.setattr(server_module, "PATIENCE", 2.0)  # a change that hangs is waited for that long
    monkeypatch.setattr(read_back, "LONGEST_DELAY", 3.0)
    proxy = FaultProxy(server.http_url)
    io_loop.run(proxy.open)
    listed = cache.settings.bounds.l2_adapter
    assert listed is not None
    scene = Scene(server.http_url, proxy, tmp_path, arenas, listed, module_token)
    io_loop.run(scene.rehearse)
    yield scene
    io_loop.run(proxy.close)


FAULTS = [
    (ADD, Fault.HUNG, False),
    (ADD, Fault.LOST, False),
    (ADD, Fault.GATEWAY, False),
    (LATE_IN_THE_CHANGE, Fault.REFUSED, True),
    (POLICIES, Fault.BROKE, True),
    (POLICIES, Fault.DELAYED, False),
    (POLICIES, Fault.UNAVAILABLE, False),
    (ATTACH, Fault.HALF, False),
    (ATTACH, Fault.LATE, False),
    (READ_BACK, Fault.UNAVAILABLE, True),
    (DRAIN, Fault.GATEWAY, True),
    (DRAIN, Fault.BROKE, False),
    (DETACH, Fault.LOST, False),
]


def test_what_is_in_force_is_known_or_told_unknown_nothing_is_done_twice_and_undo_works(scene: Scene) -> None:
    wrong = {}
    for call, fault, lasting in FAULTS:
        done, found = io_loop.run(partial(trial, scene, call, fault, lasting=lasting))
        if found or done.error is None:
            wrong[call, fault.name, lasting] = found or "nothing went wrong"
    assert wrong == {}


KILLS = [
    (ADD, Fault.KILL_BEFORE, "went on to the end"),
    (POLICIES, Fault.KILL_AFTER, "StalePlanError"),
    (DETACH, Fault.KILL_AFTER, "went on to the end"),
]


def test_another_process_goes_on_after_one_that_was_killed(scene: Scene) -> None:
    for call, fault, end in KILLS:
        assert io_loop.run(killed_agent.trial, scene, call, fault) == (end, []), call


def test_a_reading_that_breaks_is_not_taken_for_an_l1_that_only_a_restart_can_change(scene: Scene, tmp_path: Path) -> None:
    """LMCache 0.5.6 answers 500 too where L1 has several managers, and then it is."""

    async def planned() -> None:
        async with scene.agent(tmp_path / "state") as operations:
            scene.proxy.arm(("GET /reconfigure/dax/l1/status", 1), Fault.BROKE)
            with pytest.raises(RefusedError, match="it broke in the middle"):
                await operations.plan("prod", scene.update, "a test wants it")

    io_loop.run(planned)


def test_dropping_entries_whose_answer_is_an_error_of_somebody_else_may_have_been_done(scene: Scene, tmp_path: Path) -> None:
    async def cleared() -> list[ChangeOutcome]:
        async with scene.agent(tmp_path / "state") as operations:
            scene.proxy.arm(("POST /cache/clear", 1), Fault.GATEWAY)
            with pytest.raises(OutcomeUnknownError, match="it may or may not have been done"):
                await operations.clear("prod", "test")
            return [record.outcome for record in await operations.changes()]

    assert io_loop.run(cleared) == [ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN]


def test_an_arena_that_a_killed_agent_left_is_removed_when_the_next_one_is_made(arenas: Path) -> None:
    left, fresh = arenas / "lmcache-agent-l1-left", arenas / "lmcache-agent-l1-fresh"
    for file, changed in ((left, 0.0), (fresh, time.time())):
        file.touch()
        os.utime(file, (changed, changed))

    async def made() -> None:
        async with arena_file(arenas, 4096):
            assert (left.exists(), fresh.exists()) == (False, True)

    io_loop.run(made)
    fresh.unlink()
