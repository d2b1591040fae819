"""Claims about one real server under two names: it has one lock, one cool-down and one history."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from change_under_way import change_under_way

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import BusyError, CooldownError, UnknownChangeError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate
from agent_tools.operations import Operations

GROW = ConfigUpdate(max_size_mb=24)


@pytest.fixture
def named_twice(server: ServerProcess, tmp_path: Path, arena_folder: Path) -> Iterator[Operations]:
    """Operations on a server that the operator named by number and by name."""
    caches = {
        name: CacheSettings(
            target=f"http://{host}:{server.http_port}",
            arena_folder=arena_folder,
            bounds=Bounds(max_size_mb=64),
            cooldown_seconds=60,
        )
        for name, host in {"number": "127.0.0.1", "word": "localhost"}.items()
    }
    operations = Operations(Registry(Settings(caches=caches, state_folder=tmp_path / "state")))
    yield operations
    io_loop.run(operations.close)


def size(operations: Operations, cache: str) -> float | None:
    return io_loop.run(operations.config, cache)[0].max_size_mb


def test_two_changes_at_the_same_time_are_refused(named_twice: Operations) -> None:
    made = io_loop.run(named_twice.plan, "word", GROW, "a test")

    async def both() -> None:
        async with change_under_way(named_twice, "number"):
            with pytest.raises(BusyError, match="another change of word is under way"):
                await named_twice.apply(made, "test")

    io_loop.run(both)


def test_a_change_under_one_name_calls_for_a_pause_under_the_other_and_is_in_its_history(named_twice: Operations) -> None:
    io_loop.run(named_twice.check_cooldown, "word")
    done = io_loop.run(named_twice.apply, io_loop.run(named_twice.plan, "number", GROW, "a test"), "test")
    with pytest.raises(CooldownError, match=rf"word was last changed \d+ s ago \({done.change_id}\)"):
        io_loop.run(named_twice.check_cooldown, "word")
    io_loop.run(named_twice.metrics, "word")
    assert {one.change_id for one in io_loop.run(named_twice.changes, "word")} == {done.change_id}


def test_what_was_cleared_under_one_name_is_known_under_the_other(named_twice: Operations) -> None:
    io_loop.run(named_twice.clear, "number", "test")
    server = io_loop.run(named_twice.registry.get("word").deployment.snapshot).server
    assert server is not None
    assert named_twice.actor.log.last_clear("word", server) is not None
    assert named_twice.actor.log.last_clear("word", "another server") is None


def test_a_change_under_one_name_is_undone_under_the_other_but_once(named_twice: Operations) -> None:
    before = size(named_twice, "word")
    done = io_loop.run(named_twice.apply, io_loop.run(named_twice.plan, "number", GROW, "a test"), "test")
    assert size(named_twice, "word") == GROW.max_size_mb
    io_loop.run(named_twice.undo, "word", done.change_id, "test")
    assert size(named_twice, "number") == before
    with pytest.raises(UnknownChangeError, match="is not in force any more"):
        io_loop.run(named_twice.undo, "number", done.change_id, "test")
