"""Files that LMCache maps as arenas of L1. The module inside the server uses this too.

A file is reserved in full before LMCache maps it, since a sparse file on a full tmpfs would end the server with SIGBUS, and is
unlinked by who made it once it is mapped, so that nothing is left however the server ends. What somebody leaves who is killed in
between is removed when the next one is made, `ABANDONED_SECONDS` later.
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
"""Age at which a file is nobody's any more: to reserve one takes seconds, and its server has mapped it within two minutes."""


def page_aligned(size: float) -> int:
    """The next multiple of the memory page, bytes."""
    return -int(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def reserve(folder: Path, size: int) -> Path:
    """A new file of `size` bytes, all of it reserved; this takes seconds for gigabytes.

    Raises:
        OSError: The folder is missing, not writable, or has no room for it; `strerror` says which.
    """
    _remove_abandoned(folder)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"it has {free / MB:.1f} MB free; ask for less, or have the operator give more (in a container: --shm-size)",
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
    """A server that has mapped one keeps its memory."""
    for file in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                file.unlink()
