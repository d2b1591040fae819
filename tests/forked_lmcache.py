"""Real `lmcache` commands that start in a fraction of a second, forked from a process that has imported LMCache.

To import LMCache takes seven seconds of a core, and the suite starts about a hundred servers. So each test process has another
that imports it once, and forks itself for each command. A fork has the arguments, environment, working directory and output of
the command that it stands for.

As a script: ``serve FD`` is that process. ``run SOCKET ARGUMENTS...`` stands for ``lmcache ARGUMENTS...``: it ends with the exit
code of its fork, hands SIGTERM on to it, and the fork is killed when it is.
"""

import array
import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

IMPORTED = ("lmcache.cli.main", "lmcache.v1.multiprocess.http_server", "lmcache.v1.mp_coordinator.app")
"""What `lmcache server` and `lmcache coordinator` import before their work begins, besides the classes for L2 and L1."""
PR_SET_PDEATHSIG = 1
LONGEST = 1 << 20


@contextlib.contextmanager
def forking(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """The start of a command line that stands for ``lmcache``.

    Args:
        environment: What LMCache reads while it is imported, such as the level of its log: the same for all commands.
    """
    with tempfile.TemporaryDirectory(prefix="lmcache-fork-") as folder, contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        address = Path(folder) / "socket"
        listener.bind(str(address))
        listener.listen()
        serving = subprocess.Popen(
            [sys.executable, __file__, "serve", str(listener.fileno())],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            pass_fds=[listener.fileno()],
        )
        try:
            yield [sys.executable, "-I", "-S", __file__, "run", str(address)]
        finally:
            serving.kill()
            serving.wait()


def run(address: str, *arguments: str) -> int:
    """Have a command forked, and wait until it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
        outputs = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))
        connection.sendmsg([json.dumps(asked).encode()], [outputs])
        signal.signal(signal.SIGTERM, lambda *_: connection.send(b"end"))
        return int(connection.recv(LONGEST) or 1)


def serve(listener: socket.socket) -> list[str]:
    """Answer `run` for ever. In a fork, return the arguments of its command."""
    die_with_parent()
    _import_lmcache()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that watch
    while True:
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                listener.close()
                die_with_parent()
                return _forked(connection)


def _import_lmcache() -> None:
    """Import all that the commands import before their work begins."""
    for module in IMPORTED:
        importlib.import_module(module)
    importlib.import_module("lmcache.v1.distributed.l2_adapters.factory").get_all_registered_names()


def _forked(connection: socket.socket) -> list[str]:
    """Fork the command, watch it, and tell its exit code. In the command itself, return its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, outputs, _, _ = socket.recv_fds(connection, LONGEST, 2)
    asked = json.loads(message)
    if (command := os.fork()) == 0:
        connection.close()
        os.setsid()
        die_with_parent()
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
            os.close(output)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        return list(asked["arguments"])
    for output in outputs:
        os.close(output)
    ended = os.pidfd_open(command)
    while ended not in select.select([connection, ended], [], [])[0]:
        os.kill(command, signal.SIGTERM if connection.recv(LONGEST) else signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    what, where, *more = sys.argv[1:]
    if what == "run":
        sys.exit(run(where, *more))
    sys.path.pop(0)  # the folder of the tests
    sys.argv[:] = ["lmcache", *serve(socket.socket(fileno=int(where)))]
    sys.exit(importlib.import_module("lmcache.cli.main").main())
