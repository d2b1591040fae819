"""The program that runs under the guard: it writes the model, then becomes vLLM's OpenAI server.

The guard ends this process. vLLM 0.32 leaves its engine process running when its API server is killed. So a watcher in the same
process group ends the whole group after the API server has ended for any reason.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from agent_tools.child_process import python_command

PATIENCE = 5.0
"""Seconds that vLLM's processes get to end by themselves and to remove their shared memory."""


def main(folder: str, shape: str, flags: list[str]) -> None:
    """Write the model in a separate process, so that torch is gone afterwards; start the watcher; become the server.

    Args:
        folder: Folder for the model.
        shape: The model's `Shape`, as JSON.
        flags: The flags of vLLM.
    """
    os.setpgid(0, 0)
    write = (
        "from pathlib import Path; from agent_tools.demo.engine.tiny_model import Shape, write_model;"
        f" write_model(Path({folder!r}), Shape(**{json.loads(shape)!r}))"
    )
    subprocess.run(python_command(write), check=True)  # noqa: S603  our own interpreter and code
    server = os.getpid()
    if os.fork() == 0:
        _end_the_group_after(server)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *flags]
    os.execv(sys.executable, command)  # noqa: S606


def _end_the_group_after(server: int) -> None:
    """Wait for the end of the parent, ask all other processes of its group to end, and then kill them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while os.getppid() == server:
        time.sleep(0.2)
    os.killpg(server, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and _others(server):
        time.sleep(0.1)
    os.killpg(server, signal.SIGKILL)


def _others(group: int) -> list[int]:
    """Return the processes of a group, without this one."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [number for number in numbers if number != os.getpid() and _group(number) == group]


def _group(number: int) -> int | None:
    try:
        return os.getpgid(number)
    except ProcessLookupError:
        return None
