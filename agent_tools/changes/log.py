"""The change log: an append-only record of every change, refusal and undo, one JSON line each, with reason, actor and outcome.

A line that this version cannot read stops nothing: the readable fields are read, and `ChangeLog.problems` names the rest.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError
from pydantic_core import from_json

from agent_tools.errors import RecordError, UnknownChangeError
from agent_tools.models import ChangeOutcome, ChangeRecord
from agent_tools.models.metrics import now
from agent_tools.plain import plain
from agent_tools.private_folder import make_private

CARRIED_OUT = {ChangeOutcome.STARTED, ChangeOutcome.APPLIED, ChangeOutcome.UNKNOWN, ChangeOutcome.FAILED}
MOST_PROBLEMS = 5
"""Lines with problems that are named."""
AHEAD = timedelta(minutes=1)
"""A line dated further in the future was written by a wrong clock. Its time is not used."""


ROOM = 4096
"""Bytes kept free in the first line of a change for the detail of its outcome."""


@dataclass(frozen=True)
class Begun:
    """Where the first line of a change stands in the log, and the room in it."""

    offset: int
    line: bytes
    """The line up to the room; the brace that closes it comes after the room."""
    room: int

    @property
    def written(self) -> bytes:
        """The whole line as it was written, without its end."""
        return self.line + b" " * self.room + b"}"


class ChangeLog:
    """The file ``changes.jsonl`` in the state folder. One call writes a line, so lines of several processes do not mix."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: ChangeRecord) -> None:
        """Write one line and have it on disk before anything else happens.

        Raises:
            RecordError: The line could not be written whole.
        """
        with self._whole():
            self._append(_line(record) + b"\n")

    def begin(self, record: ChangeRecord) -> Begun:
        """Write the first line of a change, and keep room for its outcome: a disk that fills up meanwhile cannot lose it.

        The room is white space before the last brace, which JSON allows. A line that was cut short is therefore no record.

        Raises:
            RecordError: The disk has no room for both, or the log cannot be written. The change must not be made.
        """
        line = _line(record)
        begun = Begun(0, line[:-1], len(line) + ROOM)
        try:
            with self._whole():
                end = self._append(begun.written + b"\n")
        except RecordError as error:
            raise RecordError(f"{error}. Nothing was changed, since the change would not be on record") from error
        return replace(begun, offset=end - len(begun.written) - 1)

    def end(self, begun: Begun, record: ChangeRecord) -> None:
        """Write what became of a change into the room of its first line, or at the end of the log if the room is gone.

        Raises:
            RecordError: The line could not be written whole. The record says "started", which means that the outcome is unknown.
        """
        line = _line(record)
        with self._whole():
            if len(line) >= begun.room or not self._fill(begun, line):
                self._append(line + b"\n")

    def _append(self, text: bytes) -> int:
        """Write text at the end of the log, on a line of its own. Return where it ends."""
        make_private(self.path.parent)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            cut_short = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            text = b"\n" + text if cut_short else text
            _all_of(text, os.write(descriptor, text))
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return end

    def _fill(self, begun: Begun, line: bytes) -> bool:
        """Write a line into the room of a change. Return whether the room was still there."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if os.pread(descriptor, len(begun.written), begun.offset) != begun.written:
                return False
            text = (b"}\n" + line).ljust(begun.room + 1)
            _all_of(text, os.pwrite(descriptor, text, begun.offset + len(begun.line)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecordError(
                f"the change log {self.path} could not be written ({error.strerror or error}): make room there, or correct"
                " state_folder and its rights"
            ) from error

    def records(self, cache: str | None = None, server: str | None = None) -> list[ChangeRecord]:
        """Return the records of one cache, or of all caches if neither name nor server is given, oldest first.

        Args:
            cache: Name of the cache; ``None`` where only the server counts (`Cache.on_record`).
            server: Identity of its server. Changes of that server under another name are returned too.
        """
        everything = cache is None and server is None
        return [record for record in self._read() if everything or _concerns(record, cache, server)]

    def problems(self) -> list[str]:
        """Name the lines that cannot be read, or only in part, and the lines that are dated in the future."""
        found = [f"{self.path.name}, line {number} {wrong}" for number, _, wrong in self._lines() if wrong]
        more = [f"{len(found) - MOST_PROBLEMS} more lines have problems"] if len(found) > MOST_PROBLEMS else []
        return found[:MOST_PROBLEMS] + more

    def story(self, change_id: str) -> list[ChangeRecord]:
        """Return the records of one change, oldest first.

        Raises:
            UnknownChangeError: There is no such change.
        """
        story = [record for record in self._read(change_id) if record.change_id == change_id]
        if not story:
            raise UnknownChangeError(f"there is no change {plain(change_id)!r} in {self.path}; list the changes to find its id")
        return story

    def of_plan(self, plan_id: str) -> list[ChangeRecord]:
        """Return the records of the latest change that carried out this plan and was not refused, oldest first."""
        return _latest(record for record in self._read(plan_id) if record.plan_id == plan_id)

    def undo_of(self, change_id: str) -> list[ChangeRecord]:
        """Return the records of the latest undo of this change that was not refused, oldest first."""
        return _latest(record for record in self._read(change_id) if record.undoes == change_id)

    def last_change(self, cache: str | None, server: str | None = None) -> ChangeRecord | None:
        """Return the latest record of carrying out a change that is or may be in force. Later notes on it do not count."""
        records = self.records(cache, server)
        refused = {record.change_id for record in records if record.outcome is ChangeOutcome.REFUSED}
        carried_out = [
            record
            for record in records
            if record.outcome in CARRIED_OUT
            and record.change_id not in refused
            and record.operation != "warm"
            and not _in_the_future(record)
        ]
        return carried_out[-1] if carried_out else None

    def last_change_of_settings(self, cache: str | None, server: str | None = None) -> datetime | None:
        """Return when settings of the cache were last changed through us, or may have been."""
        records = [record for record in self._read("setting") if record.changes and _concerns(record, cache, server)]
        refused = {record.change_id for record in records if record.outcome is ChangeOutcome.REFUSED}
        carried_out = [
            record.recorded_at
            for record in records
            if record.outcome in CARRIED_OUT and record.change_id not in refused and not _in_the_future(record)
        ]
        return max(carried_out, default=None)

    def last_clear(self, cache: str | None, server: str | None = None) -> datetime | None:
        """Return when the cache was last cleared through us."""
        cleared = [
            record.recorded_at
            for record in self._read("clear")
            if (record.operation, record.outcome) == ("clear", ChangeOutcome.APPLIED)
            and _concerns(record, cache, server)
            and not _in_the_future(record)
        ]
        return cleared[-1] if cleared else None

    def _read(self, mentions: str = "") -> Iterator[ChangeRecord]:
        """Yield all records, or those that hold this text in a field. Other lines are not parsed: that takes long."""
        yield from (record for _, record, _ in self._lines(mentions) if record is not None)

    def _lines(self, mentions: str = "") -> Iterator[tuple[int, ChangeRecord | None, str]]:
        """Yield each line that is not blank: its number, what could be read of it, and what is wrong with it."""
        if not self.path.exists():
            return
        named = f'"{mentions}"'.encode(errors="replace") if mentions else b""
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            if named in line and line.strip():
                yield number, *_parsed(line)


def _parsed(line: bytes) -> tuple[ChangeRecord | None, str]:
    """Return what can be read of a line, and what is wrong with it. The words hold no value of the line."""
    try:
        record = ChangeRecord.model_validate_json(line)
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_url=False)
    else:
        return record, f"is dated {record.recorded_at:%Y-%m-%d}, in the future" if _in_the_future(record) else ""
    if wrong[0]["type"] == "json_invalid":
        return None, "is no whole JSON: it was cut short or damaged"
    names = sorted({str(one["loc"][0]) for one in wrong if one["loc"]})
    told = plain(", ".join(names) or "no JSON object")
    try:
        record = ChangeRecord.model_validate({name: value for name, value in from_json(line).items() if name not in names})
    except (ValidationError, ValueError, AttributeError):
        return None, f"is not a change as this version writes it ({told}); another version may read it"
    return record, f"is of another version: left out were {told}"


def _concerns(record: ChangeRecord, cache: str | None, server: str | None) -> bool:
    return (cache is not None and record.cache == cache) or (server is not None and record.server == server)


def _in_the_future(record: ChangeRecord) -> bool:
    return record.recorded_at > now() + AHEAD


def stories(records: Iterable[ChangeRecord]) -> list[list[ChangeRecord]]:
    """Return the records of each change, oldest first. The latest change comes first."""
    by_change: dict[str, list[ChangeRecord]] = {}
    for record in records:
        by_change.setdefault(record.change_id, []).append(record)
    return list(reversed(by_change.values()))


def _latest(records: Iterable[ChangeRecord]) -> list[ChangeRecord]:
    """Return the latest of these changes that was not refused, or nothing."""
    return next((story for story in stories(records) if all(r.outcome is not ChangeOutcome.REFUSED for r in story)), [])


def _line(record: ChangeRecord) -> bytes:
    return record.model_dump_json().encode()


def _all_of(text: bytes, written: int) -> None:
    """A file takes less than it is given when its disk is full, and says so only to the next writer."""
    if written != len(text):
        raise OSError(errno.ENOSPC, f"only {written} of {len(text)} bytes were written")


def new_id(kind: str) -> str:
    """Return a short unique id, e.g. ``change-1f0c9a2b``."""
    return f"{kind}-{uuid4().hex[:8]}"
