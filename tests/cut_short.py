"""A change whose process ends in the middle, as by ``kill -9``."""

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import os, signal, sys
from pathlib import Path
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.log import ChangeLog
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.operations import Operations
ChangeLog.end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # after the server was changed, before that is on record
prod = CacheSettings(target=sys.argv[1], cooldown_seconds=0)
operations = Operations(Registry(Settings(caches={"prod": prod}, state_folder=Path(sys.argv[2]))))
operations = operations.called_by(None, "lmcache-agent watch")
io_loop.run(operations.configure, "prod", ConfigUpdate(eviction_watermark=0.6), "killed in the middle", "graph tune_cache")
"""


def change_cut_short(url: str, state_folder: Path) -> None:
    """Set the eviction watermark of the server at this address, named ``prod``, to 0.6, and die before that is on record."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, url, str(state_folder)], timeout=60, check=False)
    assert done.returncode == -9
