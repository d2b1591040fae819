"""Run one server process and end it when its owner ends. This is a script of its own that imports nothing of ours.

    python guard.py FOLDER COMMAND...

The owner holds the other end of the guard's standard input. When the owner closes it, ends or is killed, the guard sends the
server SIGTERM, then SIGKILL after `PATIENCE` seconds, and removes FOLDER. When the server ends by itself, the guard ends with the
server's exit code.
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
    # Not sys.stdin: this thread would hold its lock while the interpreter shuts down.
    while os.read(0, 1024):
        pass
    server.terminate()
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()


def main(folder: str, command: list[str]) -> int:
    """Run `command` until it ends or the owner ends. Return its exit code."""
    # Ctrl-C and hang-ups are for the owner, which then closes our standard input.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_prepare_server)  # noqa: S603, PLW1509
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    threading.Thread(target=_stop_when_owner_ends, args=(server,), daemon=True).start()
    code = server.wait()
    shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code  # as a shell reports a signal: 137 is SIGKILL


def _prepare_server() -> None:
    """Prepare the server's process before it starts: default signals, and the kernel kills it if the guard is killed."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
