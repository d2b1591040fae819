"""Folders for what is nobody else's business: the change log, locks and the logs of servers."""

import os
import stat
from pathlib import Path

OTHERS = 0o077


def make_private(folder: Path) -> None:
    """Make sure that a folder exists and that its owner alone can enter it.

    Missing folders above it are made private too. A folder that is there already is tightened if it is ours, unless it is
    sticky: such a folder, as ``/tmp``, is meant for all users.
    """
    if not folder.exists():
        if folder.parent != folder and not folder.parent.exists():
            make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.geteuid() and found.st_mode & OTHERS and not found.st_mode & stat.S_ISVTX:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)
