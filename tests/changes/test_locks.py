"""Claims about a state folder on a file system whose locks do not work, as on some network file systems.

No such file system can be mounted here, so the system's call is made to fail as it does there.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_cache import simulated_operations

from agent_tools.errors import SettingsError
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate
from agent_tools.operations import Operations


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    operations = simulated_operations(tmp_path)
    yield operations
    io_loop.run(operations.close)


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EIO], ids=os.strerror)
def test_without_locks_nothing_is_changed_and_one_sentence_says_why(
    operations: Operations, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_: int, __: int) -> None:
        raise OSError(error, os.strerror(error))

    plan = io_loop.run(operations.plan, "default", ConfigUpdate(eviction_ratio=0.3), "a test")
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SettingsError, match="put state_folder on a local disk") as refused:
        io_loop.run(operations.apply, plan, "test")
    assert "\n" not in str(refused.value)
    assert io_loop.run(operations.changes) == []
    monkeypatch.undo()
    assert io_loop.run(operations.apply, plan, "test").success, "no lock file was left that is in the way"
