"""The append-only record of every change, refusal and undo: one JSON line each, with reason, actor and outcome."""

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from agent_tools.errors import SettingsError, UnknownChangeError
from agent_tools.models import ChangeOutcome, ChangeRecord

CARRIED_OUT = {ChangeOutcome.STARTED, ChangeOutcome.APPLIED, ChangeOutcome.UNKNOWN, ChangeOutcome.FAILED}


class ChangeLog:
    """``changes.jsonl`` in the state folder. A line is written in one call, so writers of several processes do not mix."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: ChangeRecord) -> None:
        """Write one line and have it on disk before anything else happens."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = record.model_dump_json().encode() + b"\n"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            cut_short = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" + line if cut_short else line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def records(self, cache: str | None = None) -> list[ChangeRecord]:
        """All records, oldest first, of one cache or of all."""
        return [record for record in self._read() if cache in (None, record.cache)]

    def story(self, change_id: str) -> list[ChangeRecord]:
        """The records of one change, oldest first.

        Raises:
            UnknownChangeError: There is no such change.
        """
        story = [record for record in self._read(change_id) if record.change_id == change_id]
        if not story:
            raise UnknownChangeError(f"there is no change {change_id!r} in {self.path}; list the changes to find its id")
        return story

    def of_plan(self, plan_id: str) -> list[ChangeRecord]:
        """The records of the latest change that carried out this plan and was not refused, oldest first; there may be none."""
        return _latest(record for record in self._read(plan_id) if record.plan_id == plan_id)

    def undo_of(self, change_id: str) -> list[ChangeRecord]:
        """The records of the latest undo of this change that was not refused, oldest first; there may be none."""
        return _latest(record for record in self._read(change_id) if record.undoes == change_id)

    def last_change(self, cache: str) -> ChangeRecord | None:
        """The latest record of carrying out a change that is or may be in force; what was noted about it later does not count."""
        records = self.records(cache)
        refused = {record.change_id for record in records if record.outcome is ChangeOutcome.REFUSED}
        carried_out = [record for record in records if record.outcome in CARRIED_OUT and record.change_id not in refused]
        return carried_out[-1] if carried_out else None

    def last_clear(self, cache: str) -> datetime | None:
        """When the cache was last cleared through us."""
        cleared = [r for r in self._read("clear") if (r.cache, r.operation, r.outcome) == (cache, "clear", ChangeOutcome.APPLIED)]
        return cleared[-1].recorded_at if cleared else None

    def _read(self, mentions: str = "") -> Iterator[ChangeRecord]:
        """All records, or those that have this text in a field: others are not taken apart, which a long log takes long for."""
        if not self.path.exists():
            return
        named = f'"{mentions}"'.encode(errors="replace") if mentions else b""
        lines = enumerate(self.path.read_bytes().split(b"\n"), start=1)
        records = (self._record(number, line) for number, line in lines if named in line)
        yield from (record for record in records if record is not None)

    def _record(self, number: int, line: bytes) -> ChangeRecord | None:
        """``None`` for a line cut short by a crash of the machine; all others are records."""
        try:
            return ChangeRecord.model_validate_json(line)
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid":
                return None
            raise SettingsError(f"{self.path}, line {number} is not one of this version's change log: {error}") from error


def stories(records: Iterable[ChangeRecord]) -> list[list[ChangeRecord]]:
    """The records of each change, oldest first; the latest change first."""
    by_change: dict[str, list[ChangeRecord]] = {}
    for record in records:
        by_change.setdefault(record.change_id, []).append(record)
    return list(reversed(by_change.values()))


def _latest(records: Iterable[ChangeRecord]) -> list[ChangeRecord]:
    """The latest of these changes that was not refused; there may be none."""
    return next((story for story in stories(records) if all(r.outcome is not ChangeOutcome.REFUSED for r in story)), [])


def new_id(kind: str) -> str:
    """A short unique id, e.g. ``change-1f0c9a2b``."""
    return f"{kind}-{uuid4().hex[:8]}"
