"""What runs under the guard: writes the model, then becomes vLLM's OpenAI server.

    python -m agent_tools.demo.engine.vllm_process FOLDER FLAGS...

The guard ends this process. vLLM 0.32 leaves its engine process running when its API server is killed; so a watcher of ours,
in the same process group, ends the whole group when the API server has ended, however that came.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 5.0
"""Seconds that vLLM's processes have to end by themselves, and to remove their shared memory."""


def main(folder: str, flags: list[str]) -> None:
    """Write the model in a process of its own, whose torch is gone afterwards; start the watcher; become the server."""
    os.setpgid(0, 0)
    write = f"from pathlib import Path; from agent_tools.demo.engine.tiny_model import write_model; write_model(Path({folder!r}))"
    subprocess.run([sys.executable, "-c", write], check=True)  # noqa: S603  our own interpreter and code
    server = os.getpid()
    if os.fork() == 0:
        _end_the_group_after(server)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *flags]
    os.execv(sys.executable, command)  # noqa: S606


def _end_the_group_after(server: int) -> None:
    """Wait for the end of our parent, ask all others of its group to end, and then kill them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while os.getppid() == server:
        time.sleep(0.2)
    os.killpg(server, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and _others(server):
        time.sleep(0.1)
    os.killpg(server, signal.SIGKILL)


def _others(group: int) -> list[int]:
    """The processes of a group but ourselves."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [number for number in numbers if number != os.getpid() and _group(number) == group]


def _group(number: int) -> int | None:
    try:
        return os.getpgid(number)
    except ProcessLookupError:
        return None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
