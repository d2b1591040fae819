"""What a watch remembers of a cache across its own restarts. What it changed stands in the change log, not here."""

import hashlib
import os
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from agent_tools.errors import RecordError
from agent_tools.models import CacheConfig
from agent_tools.models.config import Frozen
from agent_tools.private_folder import make_private


class Seen(Frozen):
    """What the last look at a cache saw."""

    at: float = 0.0
    """When the settings were read, Unix time."""
    server: str | None = None
    """Identity of the server process."""
    config: CacheConfig | None = None
    """The settings that were in force."""
    overridden: tuple[str, ...] = ()
    """Our changes of a setting (`Departure.key`) that were not in force because somebody else had decided otherwise."""
    told: tuple[str, ...] = ()
    """Keys of the findings that were told and lasted."""


class Memory:
    """A small file for one cache in the state folder, and the lock of the one watch that looks after the cache."""

    def __init__(self, state_folder: Path, cache: str) -> None:
        name = hashlib.sha256(cache.encode()).hexdigest()[:16]
        self._file = state_folder / "watch" / f"{name}.json"
        self._lock = FileLock(self._file.with_suffix(".lock"), thread_local=False)

    def alone(self) -> bool:
        """Return whether this watch looks after the cache. If no other watch does, this one does from now on.

        The system releases the lock when the process ends, however it ends.
        """
        try:
            make_private(self._file.parent)
            if not self._lock.is_locked:
                self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise _not_written(self._file, error) from error
        return True

    def leave(self) -> None:
        """Let another watch look after the cache."""
        self._lock.release()

    def load(self) -> Seen:
        """Return what the last look saw; nothing if there was none, or if the file cannot be read."""
        try:
            return Seen.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return Seen()

    def save(self, seen: Seen) -> None:
        """Replace the file at once, so that a reader finds it whole.

        Raises:
            RecordError: The file cannot be written.
        """
        part = self._file.with_suffix(".part")
        try:
            part.write_text(seen.model_dump_json(), encoding="utf-8")
            os.replace(part, self._file)  # noqa: PTH105  atomic, as its documentation says
        except OSError as error:
            raise _not_written(self._file, error) from error


def _not_written(file: Path, error: OSError) -> RecordError:
    return RecordError(f"the watch cannot write {file} ({error.strerror or error}): make room there, or correct state_folder")
