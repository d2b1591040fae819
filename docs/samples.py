"""The sample outputs of docs/command_line.md, from a real run: ``python docs/samples.py`` prints them for pasting.

It starts a real `lmcache server` that is too small for its traffic, and runs each command on it as a person would.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

SHOWN_URL = "http://127.0.0.1:8080"
TRAFFIC = AgentTraffic(requests=300, conversations=40, turns=6, tool_tokens=1500, spread=0.3, seed=1).generate()
MODULE = '{"module_path": "agent_tools.server_module"}'
FLAGS: Flags = {
    "--l1-size-gb": 16 / 1024,
    "--eviction-policy": "LRU",
    "--supported-transfer-mode": "auto",
    "--server-module": MODULE,
}


def main() -> None:
    """Print each command with what it shows."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess.launch(FLAGS, Path(folder) / "log")
        try:
            io_loop.run(server.wait_ready)
            _show(server, Path(folder))
        finally:
            io_loop.run(server.stop)


def _show(server: ServerProcess, folder: Path) -> None:
    def shown(*words: str) -> str:
        command = [sys.executable, "-m", "agent_tools.doors.cli", *words, "--url", server.http_url]
        environment = {"LMCACHE_AGENT_STATE_FOLDER": str(folder / "state"), "PATH": "/usr/bin:/bin", "COLUMNS": "120"}
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)  # noqa: S603
        text = ran.stdout.replace(server.http_url, SHOWN_URL)
        print(f"$ lmcache-agent {shlex.join(words)} --url {SHOWN_URL}\n{text}(exit code {ran.returncode})\n", flush=True)  # noqa: T201
        return text

    def play() -> None:
        replay(TRAFFIC, server.rpc_url, ReplaySettings(pace=TRAFFIC.duration / 15))

    play()
    shown("status")
    shown("plan", "eviction_watermark=0.95")
    made = shown("set", "eviction_watermark=0.95", "--yes", "--reason", "it evicts too early")
    change = re.findall(r"Change id: (\S+)", made)[0]
    traffic = threading.Thread(target=play)
    traffic.start()
    shown("verify", change)
    traffic.join()
    shown("undo", change)
    shown("changes")


if __name__ == "__main__":
    main()
