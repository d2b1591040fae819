"""Claims about the change log: append only, whole lines, readable after any crash."""

import json
import multiprocessing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_tools.changes.log import ChangeLog, new_id
from agent_tools.errors import UnknownChangeError
from agent_tools.models import CacheConfig, ChangeOutcome, ChangeRecord, SettingChange, SupportLevel
from agent_tools.models.metrics import now


def record(
    change_id: str = "change-1", cache: str = "c", outcome: ChangeOutcome = ChangeOutcome.STARTED, reason: str = ""
) -> ChangeRecord:
    change = SettingChange(setting="max_size_mb", old=16.0, new=32.0, how=SupportLevel.LIVE)
    return ChangeRecord(
        change_id=change_id,
        recorded_at=now(),
        cache=cache,
        actor="test",
        operation="reconfigure",
        outcome=outcome,
        reason=reason,
        changes=(change,),
        before=CacheConfig(max_size_mb=16),
    )


@pytest.fixture
def log(tmp_path: Path) -> ChangeLog:
    return ChangeLog(tmp_path / "state" / "changes.jsonl")


def test_nothing_is_written_before_the_first_change(log: ChangeLog) -> None:
    assert log.records() == []
    assert not log.path.parent.exists()


def test_records_come_back_as_they_were_and_in_order(log: ChangeLog) -> None:
    lines = [record(), record(outcome=ChangeOutcome.APPLIED), record("change-2", cache="d")]
    for line in lines:
        log.append(line)
    assert log.records() == lines
    assert log.records("c") == lines[:2]
    assert log.story("change-1") == lines[:2]


def test_an_unknown_change_is_refused(log: ChangeLog) -> None:
    with pytest.raises(UnknownChangeError, match="there is no change 'change-9'"):
        log.story("change-9")


def test_it_is_readable_by_its_owner_only(log: ChangeLog) -> None:
    log.append(record())
    assert log.path.stat().st_mode & 0o077 == 0


@settings(deadline=None)  # it waits for the disk
@given(st.data())
def test_a_line_cut_short_anywhere_costs_that_line_only(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    log = ChangeLog(tmp_path_factory.mktemp("log") / "changes.jsonl")
    first, lost, last = record(), record("change-2", reason="}{"), record("change-3")
    log.append(first)
    log.append(lost)
    whole = log.path.read_bytes()
    cut = data.draw(st.integers(whole.index(b"\n") + 1, len(whole) - 2))
    log.path.write_bytes(whole[:cut])
    assert log.records() == [first]
    log.append(last)
    assert log.records() == [first, last]


def written(log: ChangeLog, *lines: str) -> None:
    with log.path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_a_line_of_another_kind_is_named_and_stops_nothing(log: ChangeLog) -> None:
    log.append(record())
    written(log, '{"change_id": "change-2", "colour": "hunter2"}', '"text"', "[1]", '{"change_id":')
    log.append(record("change-3"))
    assert [one.change_id for one in log.records()] == ["change-1", "change-3"]
    last = log.last_change("c")
    assert last is not None
    assert last.change_id == "change-3"
    told = log.problems()
    assert [one.split(" is ")[0] for one in told] == [f"changes.jsonl, line {number}" for number in (2, 3, 4, 5)]
    assert "colour" in told[0]
    assert "hunter2" not in "".join(told)
    assert told[3].endswith("cut short or damaged")


def test_a_line_of_a_later_version_is_read_without_what_is_new_in_it(log: ChangeLog) -> None:
    log.append(record())
    later = record("change-2").model_dump(mode="json") | {"approved_by": "Ada", "detail": {"text": "new form"}}
    written(log, json.dumps(later))
    assert log.records() == [*log.story("change-1"), record("change-2").model_copy(update={"recorded_at": now_of(log)})]
    assert log.problems() == ["changes.jsonl, line 2 is of another version: left out were approved_by, detail"]


def now_of(log: ChangeLog) -> datetime:
    return log.story("change-2")[0].recorded_at


def test_a_line_dated_in_the_future_is_named_and_hides_no_other(log: ChangeLog) -> None:
    cleared = record().model_copy(update={"operation": "clear", "outcome": ChangeOutcome.APPLIED})
    log.append(cleared)
    year = now().year + 73
    log.append(cleared.model_copy(update={"change_id": "change-2", "recorded_at": cleared.recorded_at.replace(year=year, day=1)}))
    assert log.last_change("c") == cleared
    assert log.last_clear("c") == cleared.recorded_at
    assert len(log.records("c")) == 2
    (told,) = log.problems()
    assert told.startswith(f"changes.jsonl, line 2 is dated {year}-")


def test_many_lines_with_problems_are_counted(log: ChangeLog) -> None:
    log.append(record())
    written(log, *["{}"] * 40)
    assert len(log.problems()) == 6
    assert log.problems()[-1] == "35 more lines have problems"


def test_changes_of_one_server_under_two_names_are_one_history(log: ChangeLog) -> None:
    one = record().model_copy(update={"server": "a@1.0"})
    log.append(one)
    log.append(record("change-2", cache="d"))
    assert log.records("other name", "a@1.0") == [one]
    assert log.last_change("other name", "a@1.0") == one
    assert log.records("other name", "b@1.0") == log.records("other name") == []


def _append_many(path: Path, writer: int) -> None:
    log = ChangeLog(path)
    for number in range(50):
        log.append(record(f"change-{writer}-{number}", reason="x" * 5_000))


def test_writers_of_several_processes_do_not_mix_their_lines(log: ChangeLog) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(log.path, writer)) for writer in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {one.change_id for one in log.records()} == {
        f"change-{writer}-{number}" for writer in range(2) for number in range(50)
    }


@pytest.mark.parametrize(
    ("outcomes", "counts"),
    [
        ([ChangeOutcome.STARTED], 0),
        ([ChangeOutcome.STARTED, ChangeOutcome.APPLIED], 1),
        ([ChangeOutcome.STARTED, ChangeOutcome.UNKNOWN], 1),
        ([ChangeOutcome.STARTED, ChangeOutcome.FAILED], 1),
        ([ChangeOutcome.STARTED, ChangeOutcome.APPLIED, ChangeOutcome.KEPT_UNVERIFIED], 1),
        ([ChangeOutcome.STARTED, ChangeOutcome.APPLIED, ChangeOutcome.VERIFIED], 1),
        ([ChangeOutcome.STARTED, ChangeOutcome.REFUSED], None),
    ],
)
def test_the_last_change_is_the_last_that_is_or_may_be_in_force(
    log: ChangeLog, outcomes: list[ChangeOutcome], counts: int | None
) -> None:
    lines = [record(outcome=outcome) for outcome in outcomes]
    for line in [*lines, record(cache="another")]:
        log.append(line)
    assert log.last_change("c") == (None if counts is None else lines[counts])


def test_when_a_cache_was_last_cleared_is_known(log: ChangeLog) -> None:
    assert log.last_clear("c") is None
    cleared = record().model_copy(update={"operation": "clear", "outcome": ChangeOutcome.APPLIED})
    log.append(cleared)
    log.append(record("change-2"))
    assert log.last_clear("c") == cleared.recorded_at


def test_the_story_of_a_plan_and_of_an_undo_is_that_of_the_latest_that_was_not_refused(log: ChangeLog) -> None:
    assert log.of_plan("plan-1") == log.undo_of("change-1") == []
    first = record().model_copy(update={"plan_id": "plan-1"})
    again = record("change-2").model_copy(update={"plan_id": "plan-1", "undoes": "change-1"})
    refused = record("change-3", outcome=ChangeOutcome.REFUSED).model_copy(update=again.model_dump(include={"plan_id", "undoes"}))
    for line in (first, record("change-9", reason='for "plan-1" of "change-1"'), again, refused):
        log.append(line)
    assert log.of_plan("plan-1") == log.undo_of("change-1") == [again]
    assert log.story("change-1") == [first]


def test_ids_are_unique_and_times_are_utc() -> None:
    assert len({new_id("change") for _ in range(1000)}) == 1000
    assert now().utcoffset() == timedelta(0)
    assert isinstance(now(), datetime)
