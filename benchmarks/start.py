"""How long a new process takes to start: the package, `--help` and `status`, against `python -c pass` and the raw HTTP calls.

Run from the repository root::

    PYTHONPATH=. python benchmarks/start.py

Each figure is a median of fresh processes. The programs are run in turns, so that other load on the machine meets all alike.
"""

import datetime as dt
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from overhead import SEEN
from prediction import machine

from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

RESULTS = Path(__file__).parent / "results"
ROUNDS = 11
CLI = ("-m", "agent_tools.doors.cli")
STATUS = (*SEEN, "/lmc_version", "/agent-tools/entries/top?limit=10")
"""The HTTP calls of one status."""
RAW = """
import httpx
with httpx.Client(base_url={url!r}, trust_env=False) as client:
    for path in {paths!r}:
        client.get(path)
"""


@dataclass(frozen=True)
class Line:
    """The median time of one program."""

    what: str
    seconds: float
    cpu_seconds: float
    """User and system time, which other load on the machine changes less."""
    to_python: float
    """Ratio to `python -c pass`."""
    to_calls: float | None
    """Ratio to a process that only makes the HTTP calls; ``None`` for a program without calls."""
    target_seconds: float | None


def main() -> None:
    """Start a server, time the programs, and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"--l1-size-gb": 16 / 1024, "--eviction-policy": "LRU", "--supported-transfer-mode": "auto"}
        module = {"--server-module": json.dumps({"module_path": "agent_tools.server_module", "config": {"off": ["arenas"]}})}
        server = ServerProcess.launch({**flags, **module}, Path(folder))
        try:
            io_loop.run(server.wait_ready)
            replay(AgentTraffic(requests=40, seed=3).generate(), server.rpc_url, ReplaySettings(kv_bytes_per_token=32))
            lines = measured(server.http_url, Path(folder))
        finally:
            io_loop.run(server.stop)
    text = report(lines)
    print(text)
    (RESULTS / "start.md").write_text(text)
    figures = {"machine": machine(), "lines": [asdict(line) for line in lines]}
    (RESULTS / "start.json").write_text(json.dumps(figures, indent=1) + "\n")


def measured(url: str, folder: Path) -> list[Line]:
    """Time every program, in turns."""
    programs: dict[str, tuple[tuple[str, ...], float | None]] = {
        "python -c pass": (("-c", "pass"), None),
        "import agent_tools": (("-c", "import agent_tools"), 0.05),
        "lmcache-agent --help": ((*CLI, "--help"), 0.4),
        "the HTTP calls of a status, with httpx": (("-c", RAW.format(url=url, paths=STATUS)), None),
        "lmcache-agent status": ((*CLI, "status", "--url", url), 1.0),
    }
    times: dict[str, list[tuple[float, float]]] = {what: [] for what in programs}
    for arguments, _target in programs.values():
        timed(arguments, folder)  # writes the bytecode
    for _ in range(ROUNDS):
        for what, (arguments, _target) in programs.items():
            times[what].append(timed(arguments, folder))
    medians = {what: statistics.median(wall for wall, _ in of) for what, of in times.items()}
    cpu = {what: statistics.median(used for _, used in of) for what, of in times.items()}
    python, calls = medians["python -c pass"], medians["the HTTP calls of a status, with httpx"]
    return [
        Line(what, medians[what], cpu[what], medians[what] / python, medians[what] / calls if "status" in what else None, target)
        for what, (_, target) in programs.items()
    ]


def timed(arguments: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Return the seconds that one fresh process takes, and its CPU seconds."""
    environment = os.environ | {
        "LMCACHE_AGENT_STATE_FOLDER": str(folder / "state"),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment, cwd=folder)  # noqa: S603
    seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def report(lines: list[Line]) -> str:
    """Return the figures as Markdown."""
    rows = [
        f"| {line.what} | {line.seconds:.3f} s | {line.cpu_seconds:.3f} s | {line.to_python:.1f} |"
        f" {'' if line.to_calls is None else f'{line.to_calls:.1f}'} |"
        f" {'' if line.target_seconds is None else f'{line.target_seconds:g} s'} |"
        for line in lines
    ]
    return "\n".join(
        [
            "# Start",
            "",
            f"{machine()}, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}. Medians of {ROUNDS} fresh processes, run in turns.",
            "",
            "| program | time | CPU time | times `python -c pass` | times the HTTP calls | target |",
            "|---|--:|--:|--:|--:|--:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
