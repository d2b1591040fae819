"""An hour of `lmcache-agent watch` in mode auto on a real server: changing traffic, two restarts, and a change by somebody else.

Run from the repository root::

    python benchmarks/watch.py [--minutes 60]

The server has our module and 16 MB of L1; the bounds allow 48 MB. Each of three phases has traffic of its own:

1. a working set that a larger L1 holds; in its middle the server is restarted with the settings it first had;
2. a smaller working set; in its middle somebody else sets the eviction ratio to 0.6;
3. a larger working set; in its middle the server is restarted again.

In each phase, what the server hit in the last third is compared with the best setting on a grid within the bounds, by the server
model on the same requests. The phases, the looks and the cool-down are shorter with fewer `--minutes`; the windows of the advice
are not, so a short run says whether the watch works, and only a run of an hour says how well. The results go to
``results/watch.json`` and ``results/watch.md``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from agent_tools.arena_file import reserve
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, ConfigUpdate
from agent_tools.operations import Operations
from agent_tools.prediction.server_prediction import predict_settings
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

RESULTS = Path(__file__).parent / "results"
START_MB, MOST_MB = 16, 48
KV_BYTES_PER_TOKEN = 256
CHUNK_BYTES = 256 * KV_BYTES_PER_TOKEN
PHASES = (("restart", 30), ("foreign change", 12), ("restart", 60))
"""What happens in the middle of each phase, and how many conversations it has."""
GRID = [
    ServerSetting(capacity_chunks=size * MB / CHUNK_BYTES, watermark=watermark, ratio=ratio)
    for size in (16, 24, 32, 40, 48)
    for watermark in (0.7, 0.8, 0.9, 0.95)
    for ratio in (0.02, 0.05, 0.1, 0.2)
]


@dataclass(frozen=True)
class Phase:
    """What one phase gave in its last third, as shares of the chunks asked for."""

    number: int
    middle: str
    requests: int
    measured: float
    best: float
    """Of the grid, by the model."""
    first_setting: float
    """With the settings that the server starts with, by the model."""
    size_mb: float | None
    watermark: float | None
    ratio: float | None
    """Settings in force at the end."""


class Server:
    """The server, on a devdax file so that its size is live; each start has the first settings."""

    def __init__(self, folder: Path, arenas: Path) -> None:
        self._folder, self._arenas = folder, arenas
        self.process = self._start(None)

    def restart(self) -> None:
        ports = self.process.http_port, self.process.rpc_port
        io_loop.run(self.process.stop)
        self.process = self._start(ports)

    def _start(self, ports: tuple[int, int] | None) -> ServerProcess:
        primary = reserve(self._arenas, START_MB * MB)
        module = {
            "module_path": "agent_tools.server_module",
            "config": {"arena_folder": str(self._arenas), "max_l1_mb": MOST_MB},
        }
        flags: Flags = {
            "--l1-size-gb": START_MB / 1024,
            "--eviction-policy": "LRU",
            "--supported-transfer-mode": "auto",
            "--server-module": json.dumps(module),
            "--l1-devdax-path": str(primary),
            "--no-l1-use-lazy": True,
            "--shm-name": "",
        }
        process = ServerProcess.launch(flags, self._folder, ports)
        try:
            io_loop.run(process.wait_ready)
        finally:
            primary.unlink(missing_ok=True)
        return process


def traffic(conversations: int, seconds: float, seed: int) -> AccessLog:
    """Return about two requests a second for a phase."""
    requests = max(int(2 * seconds), 120)
    return AgentTraffic(requests=requests, conversations=conversations, turns=8, tool_tokens=800, seed=seed).generate()


@contextmanager
def watching(url: str, folder: Path, minutes: float) -> Iterator[Path]:
    """Run the watch as a user would; yield the file with its events."""
    scale = minutes / 60
    settings = folder / "caches.toml"
    settings.write_text(
        f'[caches.prod]\ntarget = "{url}"\nmax_mode = "auto"\ncooldown_seconds = {60 * scale:g}\n'
        f"bounds = {{ max_size_mb = {MOST_MB} }}\n",
        encoding="utf-8",
    )
    every, patience = max(120 * scale, 31), max(180 * scale, 20)
    command = [sys.executable, "-m", "agent_tools.doors.cli", "--settings", str(settings), "watch", "-c", "prod"]
    command += ["--every", f"{every:g}", "--verify-seconds", f"{patience:g}", "--json"]
    environment = os.environ | {"LMCACHE_AGENT_STATE_FOLDER": str(folder / "state")}
    events = folder / "events.jsonl"
    with (
        events.open("wb") as out,
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=out, stderr=log) as process,  # noqa: S603  our own program
    ):
        try:
            yield events
        finally:
            process.terminate()


def run(minutes: float, folder: Path, arenas: Path) -> tuple[list[Phase], list[dict[str, object]]]:
    """Run all phases, and return what each gave and every event of the watch."""
    server, phases, seconds = Server(folder, arenas), [], 60 * minutes / len(PHASES)
    theirs = CacheSettings.model_validate({"target": server.process.http_url})
    somebody = Operations(Registry(Settings(caches={"prod": theirs}, state_folder=folder / "theirs")))
    try:
        with watching(server.process.http_url, folder, minutes) as events:
            for number, (middle, conversations) in enumerate(PHASES, 1):
                log = traffic(conversations, seconds, number)
                half = len(log) // 2
                pace = ReplaySettings(pace=max(log.duration / seconds, 1e-6), kv_bytes_per_token=KV_BYTES_PER_TOKEN)
                parts = [replay(log.select(slice(0, half)), server.process.rpc_url, pace).hits]
                if middle == "restart":
                    server.restart()
                else:
                    io_loop.run(somebody.configure, "prod", ConfigUpdate(eviction_ratio=0.6), "by hand", "somebody")
                parts.append(replay(log.select(slice(half, len(log))), server.process.rpc_url, pace).hits)
                phases.append(judged(number, middle, log, np.concatenate(parts), pace.pace or 1.0, somebody))
                print(phases[-1], flush=True)
            time.sleep(5)
            told = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    finally:
        io_loop.run(somebody.close)
        io_loop.run(server.process.stop)
    return phases, told


def judged(number: int, middle: str, log: AccessLog, hits: "np.ndarray", pace: float, somebody: Operations) -> Phase:
    """Compare what was hit in the last third with the model's best on the grid."""
    tail = slice(2 * len(log) // 3, len(log))
    asked = int(log.chunks_per_request[tail].sum())
    as_sent = replace(log, timestamps=(log.timestamps - log.timestamps[0]) / pace)
    runs = predict_settings(as_sent, [ServerSetting(START_MB * MB / CHUNK_BYTES), *GRID], clocks=3)
    rates = [float(np.mean([one.l1_hit_chunks[tail].sum() for one in each.runs]) / asked) for each in runs]
    config = io_loop.run(somebody.settings, "prod")
    return Phase(
        number=number,
        middle=middle,
        requests=len(log),
        measured=float(hits[tail].clip(0).sum() / asked),
        best=max(rates[1:]),
        first_setting=rates[0],
        size_mb=config.max_size_mb,
        watermark=config.eviction_watermark,
        ratio=config.eviction_ratio,
    )


def table(minutes: float, phases: list[Phase], told: list[dict[str, object]]) -> str:
    """Return the results as Markdown."""
    rows = [
        f"| {one.number} | {one.middle} | {one.measured:.1%} | {one.best:.1%} | {100 * (one.best - one.measured):+.1f} |"
        f" {one.first_setting:.1%} | {one.size_mb:.0f} MB, {one.watermark:g}, {one.ratio:g} |"
        for one in phases
    ]
    kinds = sorted({str(one["kind"]) for one in told})
    counts = ", ".join(f"{sum(one['kind'] == kind for one in told)} {kind}" for kind in kinds)
    head = (
        "| phase | in its middle | measured | best of the grid (model) | short by, points | first settings (model) | at its end |"
    )
    title = f"`benchmarks/watch.py --minutes {minutes:g}`, on this machine's {os.cpu_count()} cores; last third of each phase."
    return "\n".join(
        [title, "", head, "|---|---|--:|--:|--:|--:|---|", *rows, "", f"Events of the watch: {counts or 'none'}.", ""]
    )


def main() -> None:
    """Run it, and write the results."""
    parser = argparse.ArgumentParser(description="An hour of `lmcache-agent watch` on a real server")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as arenas:
        phases, told = run(given.minutes, Path(folder), Path(arenas))
    given.results.mkdir(parents=True, exist_ok=True)
    data = {"minutes": given.minutes, "phases": [asdict(one) for one in phases], "events": told}
    (given.results / "watch.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    text = table(given.minutes, phases, told)
    (given.results / "watch.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
