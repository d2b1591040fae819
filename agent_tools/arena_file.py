"""Files that LMCache maps as arenas of L1. The module inside the server uses this file too.

`reserve` allocates the whole file before LMCache maps it: a sparse file on a full tmpfs would end the server with SIGBUS. The
process that made a file unlinks it once the file is mapped, so nothing is left behind however the server ends. If that process is
killed in between, a later `reserve` removes its file after `ABANDONED_SECONDS`.
"""

import contextlib
import errno
import mmap
import os
import shutil
import tempfile
import time
from pathlib import Path

MB = 2**20
PREFIX = "lmcache-agent-l1-"
ABANDONED_SECONDS = 600.0
"""Age at which a file counts as abandoned. Reserving a file takes seconds, and its server maps it within two minutes."""


def page_aligned(size: float) -> int:
    """Return the size rounded up to the next multiple of the memory page, in bytes."""
    return -int(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def reserve(folder: Path, size: int) -> Path:
    """Create a file of `size` bytes with all of its space reserved. This takes seconds for gigabytes.

    Raises:
        OSError: The folder is missing, not writable, or too full; `strerror` says which.
    """
    _remove_abandoned(folder)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"it has {free / MB:.1f} MB free; ask for less, or have the operator give it more (in a container: --shm-size)",
        )
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        Path(name).unlink()
        raise
    finally:
        os.close(descriptor)
    return Path(name)


def _remove_abandoned(folder: Path) -> None:
    """Remove abandoned files. A server that has mapped one keeps its memory."""
    for file in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # already gone, or owned by another user
            if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                file.unlink()
