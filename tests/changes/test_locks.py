"""Claims about a state folder on a file system whose locks do not work, or not between hosts, as on some network file systems.

sshfs is real where it is installed. No NFS can be mounted here, so the system's call is made to fail as it does there.
"""

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_cache import simulated_operations

from agent_tools.changes.lock import why_host_only
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


SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """One folder as two hosts have it over sshfs: mounted twice, each by a process of its own."""
    if not (shutil.which("sshfs") and SFTP_SERVER.exists() and os.access("/dev/fuse", os.W_OK)):
        pytest.skip("sshfs is not here (Debian: sshfs, openssh-sftp-server, /dev/fuse)")
    (tmp_path / "shared").mkdir()
    mounts, processes = (tmp_path / "first host", tmp_path / "second host"), []
    try:
        for mount in mounts:
            mount.mkdir()
            ours, theirs = socket.socketpair()
            with ours, theirs:
                processes.append(subprocess.Popen([SFTP_SERVER], stdin=ours, stdout=ours))
                command = ["sshfs", f":{tmp_path / 'shared'}", mount, "-o", "slave", "-f"]
                processes.append(subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE))
            while not mount.is_mount():
                if processes[-1].poll() is not None:
                    pytest.skip(f"sshfs cannot mount here: {processes[-1].communicate()[1].decode().strip()}")
                time.sleep(0.05)
        yield mounts
    finally:
        for mount in mounts:
            if mount.is_mount():
                subprocess.run(["fusermount3", "-u", mount], check=True)
        for process in processes:
            with process:  # which closes its pipe
                process.terminate()


def test_over_sshfs_two_hosts_would_get_one_lock_so_nothing_is_changed(two_hosts: tuple[Path, Path]) -> None:
    with (two_hosts[0] / "a lock").open("w") as first, (two_hosts[1] / "a lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    operations = simulated_operations(two_hosts[0] / "state")
    try:
        plan = io_loop.run(operations.plan, "default", ConfigUpdate(eviction_ratio=0.3), "a test")
        with pytest.raises(SettingsError, match=r"first host is sshfs, whose locks other hosts do not see.*Nothing was changed"):
            io_loop.run(operations.apply, plan, "test")
        assert io_loop.run(operations.changes) == []
    finally:
        io_loop.run(operations.close)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("nas:/state {} nfs4 rw,vers=4.2,hard,local_lock=none 0 0", None),
        ("nas:/state {} nfs rw,vers=3,nolock,local_lock=all 0 0", "is mounted with local_lock=all, so"),
        ("nas:/state {} nfs rw,vers=3,local_lock=flock 0 0", "is mounted with local_lock=flock, so"),
        ("bucket {} fuse.rclone rw 0 0", "is rclone, whose locks"),
        ("overlay {} fuse.fuse-overlayfs rw 0 0", None),
        ("me@host:/ {} fuse.sshfs rw 0 0\n/dev/vda {} ext4 rw 0 0", None),
    ],
    ids=["NFSv4", "without locks", "flock stays here", "rclone", "a container's", "covered by a disk"],
)
def test_mounts_whose_locks_other_hosts_do_not_see_are_known(tmp_path: Path, row: str, why: str | None) -> None:
    folder = tmp_path / "the state" / "locks"
    folder.mkdir(parents=True)
    table = tmp_path / "mounts"
    table.write_text("/dev/vda / ext4 rw 0 0\n" + row.replace("{}", str(folder.parent).replace(" ", "\\040")) + "\n")
    found = why_host_only(folder, table)
    assert (found is None) if why is None else (found is not None and found.startswith(f"{folder.parent} {why}"))


def test_without_a_table_of_mounts_nothing_is_known(tmp_path: Path) -> None:
    assert why_host_only(tmp_path, tmp_path / "no mounts") is None
