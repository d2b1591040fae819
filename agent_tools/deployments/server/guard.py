"""Runs one server process and ends it when its owner ends, however that happens. A script of its own; imports nothing of ours.

    python guard.py FOLDER COMMAND...

The owner holds the other end of our standard input. When that closes (the owner closed it, ended or was killed), the server
gets SIGTERM, then SIGKILL after `PATIENCE` seconds, and FOLDER is removed. When the server ends by itself, we end with its code.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

PATIENCE = 8.0
PR_SET_PDEATHSIG = 1


def _stop_when_owner_ends(server: "subprocess.Popen[bytes]") -> None:
    # Not sys.stdin, whose lock would be held by this thread when the interpreter shuts down.
    while os.read(0, 1024):
        pass
    server.terminate()
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()


def main(folder: str, command: list[str]) -> int:
    """Run `command` until it or our owner ends; its exit code."""
    # Ctrl-C and hang-ups are for the owner, who then closes our standard input.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_prepare_server)  # noqa: S603, PLW1509
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    threading.Thread(target=_stop_when_owner_ends, args=(server,), daemon=True).start()
    code = server.wait()
    shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code  # as a shell tells of a signal: 137 is SIGKILL


def _prepare_server() -> None:
    """In the server's process, before it starts: signals as usual, and if the guard itself is killed the kernel kills it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
