"""A lock that all agents share that use the same state folder; the system releases it when a process dies."""

import fcntl
import os
import re
from pathlib import Path

from filelock import FileLock, Timeout

from agent_tools.errors import SettingsError
from agent_tools.private_folder import make_private

MOUNTS = Path("/proc/self/mounts")
HOST_ONLY_TYPES = {f"fuse.{name}" for name in ("sshfs", "rclone", "s3fs", "gcsfuse", "goofys", "mountpoint-s3", "blobfuse2")}
"""File systems in which `flock` holds within one host only, although other hosts have the same files (seen with sshfs)."""
HOST_ONLY_OPTIONS = {"nolock", "local_lock=all", "local_lock=flock"}
"""Options with which an NFS is mounted so."""


def acquire(lock: FileLock) -> None:
    """Take a lock at once, or not at all.

    Raises:
        Timeout: Another process, on this host or another, has it.
        SettingsError: Its folder cannot be locked, or not against other hosts that share it.
    """
    folder = Path(lock.lock_file).parent
    try:
        make_private(folder)
        if local := why_host_only(folder):
            raise _no_locks(folder, local)
        lock.acquire(timeout=0)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:  # the latter by older versions of filelock
        raise _no_locks(folder, error) from error
    # Where there is no flock, filelock marks the file as locked, and the mark outlives a process that is killed.
    if why := _why_not_locked(Path(lock.lock_file)):
        lock.release()
        raise _no_locks(folder, why)


def why_host_only(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """Return why a lock in a folder does not hold against other hosts that share the folder; ``None`` if none is known.

    Args:
        folder: An absolute path.
        mounts: The system's table of mounts. Where there is none (macOS), nothing is known.
    """
    try:
        rows = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return None
    real = os.path.realpath(folder)
    holding = [row for row in rows if _holds(_unescaped(row[1]), real)]
    if not holding:
        return None
    _, point, kind, options = max(reversed(holding), key=lambda row: len(row[1]))[:4]  # the last one mounted there is in force
    if kind in HOST_ONLY_TYPES:
        return f"{_unescaped(point)} is {kind.removeprefix('fuse.')}, whose locks other hosts do not see"
    if kind.startswith("nfs") and (found := HOST_ONLY_OPTIONS.intersection(options.split(","))):
        return f"{_unescaped(point)} is mounted with {min(found)}, so other hosts do not see its locks"
    return None


def _holds(mount_point: str, path: str) -> bool:
    return os.path.commonpath([mount_point, path]) == mount_point


def _unescaped(field: str) -> str:
    r"""Return a field of the table of mounts, in which a space is written as ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _why_not_locked(held: Path) -> object | None:
    """Return why a file that was just locked can be locked once more; ``None`` if it cannot."""
    with held.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError as error:
            return error
    return "two processes got the same lock"


def _no_locks(folder: Path, why: object) -> SettingsError:
    return SettingsError(
        f"nothing in {folder} can be locked ({why}), so two agents could change a server at once: put state_folder on a local"
        " disk, or on a network file system with locks (NFSv4). Nothing was changed"
    )
