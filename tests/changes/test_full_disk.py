"""Claims about a change log that cannot be written: no change is made that is not on record, and no outcome is lost."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from simulated_cache import simulated_operations
from test_log import record

from agent_tools.changes.log import ROOM, ChangeLog
from agent_tools.errors import RecordError
from agent_tools.io_loop import io_loop
from agent_tools.models import ChangeOutcome, ChangeRecord, ConfigUpdate, Plan
from agent_tools.operations import Operations


@pytest.fixture
def log(tmp_path: Path) -> ChangeLog:
    return ChangeLog(tmp_path / "state" / "changes.jsonl")


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    operations = simulated_operations(tmp_path)
    yield operations
    io_loop.run(operations.close)


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """As `ulimit -f` does: no file of this process grows beyond so many bytes. A write is cut short there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def outcomes(operations: Operations) -> list[ChangeOutcome]:
    return [one.outcome for one in io_loop.run(operations.changes)]


def test_the_outcome_stands_in_the_room_behind_the_first_line(log: ChangeLog) -> None:
    begun = log.begin(record())
    log.append(record("change-2"))
    size = log.path.stat().st_size
    log.end(begun, record(outcome=ChangeOutcome.APPLIED))
    assert log.path.stat().st_size == size
    assert [(one.change_id, one.outcome.value) for one in log.records()] == [
        ("change-1", "started"),
        ("change-1", "applied"),
        ("change-2", "started"),
    ]
    assert log.records()[:2] == log.story("change-1")


def test_an_outcome_that_is_too_long_or_whose_room_is_gone_is_written_at_the_end(log: ChangeLog) -> None:
    long = record(outcome=ChangeOutcome.REFUSED).model_copy(update={"detail": "ä" * ROOM})
    log.end(log.begin(record()), long)
    begun = log.begin(record("change-2"))
    log.path.write_bytes(b"")
    done = record("change-2", outcome=ChangeOutcome.APPLIED)
    log.end(begun, done)
    assert log.records() == [done]
    log.path.unlink()
    log.end(begun, done)
    assert log.records() == [done]


def test_a_full_disk_is_told_and_so_is_that_nothing_was_changed(tmp_path: Path) -> None:
    full = tmp_path / "changes.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(RecordError, match=r"could not be written \(No space left on device\).*Nothing was changed"):
        ChangeLog(full).begin(record())


def test_a_write_that_is_cut_short_is_an_error_and_costs_that_line_only(log: ChangeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(record())
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, text: write(descriptor, text[: len(text) // 4]))
        with pytest.raises(RecordError, match="bytes were written"):
            log.append(record("change-2"))
    log.append(record("change-3"))
    assert [one.change_id for one in log.records()] == ["change-1", "change-3"]


@pytest.mark.parametrize("room", [0, 10, 2000])
def test_a_change_that_cannot_be_on_record_is_not_made(operations: Operations, room: int) -> None:
    done = io_loop.run(operations.apply, plan(operations, 24), "test")
    next_plan = plan(operations, 32)
    with longest_file(operations.actor.log.path.stat().st_size + room):
        for change in (
            lambda: io_loop.run(operations.apply, next_plan, "test"),
            lambda: io_loop.run(operations.undo, "default", done.change_id, "test"),
            lambda: io_loop.run(operations.clear, "default", "test"),
        ):
            with pytest.raises(RecordError, match="Nothing was changed"):
                change()
    assert io_loop.run(operations.settings).max_size_mb == 24
    assert outcomes(operations) == [ChangeOutcome.STARTED, ChangeOutcome.APPLIED]
    assert io_loop.run(operations.apply, next_plan, "test").config.max_size_mb == 32


def test_a_disk_that_fills_up_during_a_change_does_not_lose_its_outcome(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, log = operations.registry.get("default").deployment, operations.actor.log
    apply = deployment.apply

    async def filling_up(*arguments: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size, resource.RLIM_INFINITY))
        await apply(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deployment, "apply", filling_up)
    with longest_file(resource.RLIM_INFINITY):
        assert io_loop.run(operations.apply, plan(operations, 24), "test").config.max_size_mb == 24
        with pytest.raises(RecordError):
            io_loop.run(operations.clear, "default", "test")
    assert outcomes(operations) == [ChangeOutcome.STARTED, ChangeOutcome.APPLIED]


def test_an_outcome_that_cannot_be_written_is_told(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RecordError("the change log could not be written (Input/output error)")

    monkeypatch.setattr(operations.actor.log, "end", broken)
    with pytest.raises(RecordError, match="ended as applied, but the record does not say so"):
        io_loop.run(operations.apply, plan(operations, 24), "test")
    records: list[ChangeRecord] = io_loop.run(operations.changes)
    assert [one.outcome for one in records] == [ChangeOutcome.STARTED]


def test_an_undo_during_which_the_disk_fills_up_says_that_it_was_made(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own lines have their room. The line that closes the first change has none."""
    done = io_loop.run(operations.apply, plan(operations, 24), "test")
    deployment, log = operations.registry.get("default").deployment, operations.actor.log
    apply = deployment.apply

    async def filling_up(*arguments: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size, resource.RLIM_INFINITY))
        await apply(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deployment, "apply", filling_up)
    with longest_file(resource.RLIM_INFINITY), pytest.raises(RecordError, match=rf"{done.change_id} was undone by change-"):
        io_loop.run(operations.undo, "default", done.change_id, "test")
    assert io_loop.run(operations.settings).max_size_mb == done.plan.changes[0].old
    assert outcomes(operations) == [ChangeOutcome.STARTED, ChangeOutcome.APPLIED] * 2


def plan(operations: Operations, max_size_mb: float) -> Plan:
    return io_loop.run(operations.plan, "default", ConfigUpdate(max_size_mb=max_size_mb), "a test")


def test_the_state_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    for made in (False, True):
        folder = tmp_path / str(made)
        if made:
            folder.mkdir(mode=0o755)
        operations = simulated_operations(folder)
        io_loop.run(operations.clear, "default", "test")
        assert [one.stat().st_mode & 0o077 for one in (folder, folder / "locks", folder / "changes.jsonl")] == [0, 0, 0]
        io_loop.run(operations.close)


def test_a_folder_that_is_meant_for_all_is_left_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    log = ChangeLog(shared / "changes.jsonl")
    log.append(record())
    assert shared.stat().st_mode & 0o7777 == 0o1777
