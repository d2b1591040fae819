"""Measure the speed of the predictions, as ratios to LMCache's own sweep in the same run.

Run from the repository root::

    PYTHONPATH=. python benchmarks/prediction.py [--large]

``--large`` adds a log of 100 M chunk accesses (about 3 GB of memory). The results go to ``results/prediction.json`` and ``.md``.
"""

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent_tools.models import (
    MB,
    SETTINGS,
    Bounds,
    CacheConfig,
    CacheMetrics,
    CacheStatus,
    Health,
    Support,
    SupportLevel,
    TokenCounts,
    Window,
)
from agent_tools.models.metrics import utc
from agent_tools.prediction.clairvoyant import clairvoyant_hits
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.prediction.in_process_model import simulate_in_process
from agent_tools.prediction.server_model import simulate_server
from agent_tools.prediction.server_prediction import predict_settings
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.recommender.observation import Observation
from agent_tools.recommender.recommend import recommend
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.readers import read_lookup_log

IntArray = npt.NDArray[np.int32]

RESULTS = Path(__file__).parent / "results"
SWEEP_POINTS = 30
LARGE = "exact curve, 100 M chunks"


@dataclass(frozen=True)
class Line:
    """One measured figure."""

    what: str
    chunks: int
    """Chunk accesses worked through, over all settings."""
    seconds: float
    """Best of several."""
    target: str = ""

    @property
    def rate(self) -> float:
        """Chunk accesses per second."""
        return self.chunks / self.seconds


def machine() -> str:
    """CPU model, cores and Python of this machine."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def growing_conversations(accesses: int, seed: int = 0) -> AccessLog:
    """Agents whose prompts grow for eight turns and start anew: some 62 chunks a request, a fifth of all accesses distinct."""
    draw = np.random.default_rng(seed)
    requests = accesses // 62
    agents = draw.integers(max(requests // 40, 1), size=requests)
    turns = np.zeros(int(agents.max()) + 1, np.int64)
    prompts: dict[int, IntArray] = {}
    parts: list[IntArray] = []
    given = 0
    for agent in agents.tolist():
        turn = turns[agent] % 8
        turns[agent] += 1
        known = prompts[agent] if turn else np.empty(0, np.int32)
        added = 16 + agent % 5 if turn == 0 else 13
        prompts[agent] = np.concatenate((known, np.arange(given, given + added, dtype=np.int32)))
        parts.append(prompts[agent])
        given += added
    counts = np.array([len(part) for part in parts], np.int64)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    nobody = np.zeros(requests, np.int16)
    return AccessLog(256, np.concatenate(parts), offsets, counts * 256 + 100, np.arange(requests) / 20.0, nobody, nobody)


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest run, after one for warming up."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure(log: AccessLog) -> list[Line]:
    """Everything on one log in memory."""
    chunks = len(log.chunk_ids)
    capacity = log.unique_chunks // 5
    grid = [ServerSetting(capacity, watermark, ratio) for watermark in (0.6, 0.7, 0.8, 0.9) for ratio in (0.05, 0.2)]
    l1, both = ServerSetting(capacity), ServerSetting(capacity, l2_capacity_chunks=3 * capacity)
    one, two = (best_of(5, lambda s=setting: simulate_server(log, s)) for setting in (l1, both))
    return [
        Line("exact curve, every capacity", chunks, best_of(7, lambda: hit_rate_curve(log)), "<= 25 ms at 1 M chunks"),
        Line("server model, L1", chunks, one, ">= 50 M/s"),
        Line("server model, L1 and L2", chunks, two, ">= 50 M/s"),
        Line("prediction of 8 settings, 20 clocks each", 160 * chunks, best_of(3, lambda: predict_settings(log, grid))),
        Line("in-process LMCache, LRU", chunks, best_of(5, lambda: simulate_in_process(log, capacity, "LRU"))),
        Line("in-process LMCache, LFU", chunks, best_of(5, lambda: simulate_in_process(log, capacity, "LFU"))),
        Line("clairvoyant bound", chunks, best_of(5, lambda: clairvoyant_hits(log, capacity))),
        Line("full recommendation", chunks, best_of(3, lambda: recommend(observed(log, capacity))), "<= 2 s"),
    ]


def observed(log: AccessLog, capacity: int) -> Observation:
    """What a cache of so many chunks of 128 KiB would show after serving the log, with all its settings open to change."""
    log = replace(log, chunk_bytes=MB // 8)
    run = simulate_server(log, ServerSetting(capacity))
    asked = int(run.asked_chunks.sum())
    return Observation(
        cache="bench",
        metrics=CacheMetrics(
            status=CacheStatus.ENABLED,
            enabled=True,
            window=Window(start=utc(0), end=utc(float(log.timestamps[-1]))),
            total_requests=len(log),
            tokens=TokenCounts(requested=asked * log.chunk_size, hit_l1=run.hit_tokens),
            failed_stores=run.failed_chunks,
            evictions=run.evicted_chunks,
            stored_chunks=asked - int(run.hit_chunks.sum()) - run.failed_chunks,
            dropped_events=0,
        ),
        config=CacheConfig(
            max_size_mb=capacity / 8, chunk_size=log.chunk_size, eviction_watermark=0.8, eviction_ratio=0.2, l2_adapters=()
        ),
        support={setting: Support(level=SupportLevel.LIVE, reason="a benchmark") for setting in SETTINGS},
        bounds=Bounds(max_size_mb=capacity, allow_restart=True),
        health=Health(healthy=True),
        log=log,
    )


def from_a_file(log: AccessLog) -> Line:
    """From LMCache's lookup-hash log on disk to the curve."""
    with tempfile.TemporaryDirectory() as folder:
        write_lookup_log(log, Path(folder) / "lookup_hashes_20260101_000000_000000.jsonl")
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        seconds = best_of(5, lambda: hit_rate_curve(read_lookup_log(folder)))
    return Line(f"from the lookup-hash log on disk ({size:.0f} MB) to the curve", len(log.chunk_ids), seconds, "<= 0.3 s")


def write_lookup_log(log: AccessLog, file: Path) -> None:
    """The log as `lmcache server --lookup-hash-log-dir` writes it."""
    names = [f"0x{hashlib.sha256(str(chunk).encode()).hexdigest()}" for chunk in range(log.unique_chunks)]
    layout = {"model_name": "bench", "chunk_size": log.chunk_size, "dtypes": ["torch.float16"], "shapes": [[2, 8, 256, 16]]}
    with file.open("w", encoding="ascii") as lines:
        for i in range(len(log)):
            own = {"timestamp": float(log.timestamps[i]), "request_id": f"bench-{i}", "seq_len": int(log.tokens[i])}
            lines.write(json.dumps(own | layout | {"chunk_hashes": [names[chunk] for chunk in log.request(i)]}) + "\n")


def lmcaches_sweep(log: AccessLog) -> Line:
    """LMCache's own simulator at 30 capacities, in its fast mode, on events already in memory."""
    from lmcache.tools.cache_simulator.simulator import simulate  # noqa: PLC0415 - takes seconds, and warns

    events = [
        {
            "chunk_hashes": [f"0x{chunk:064x}" for chunk in log.request(i).tolist()],
            "seq_len": int(log.tokens[i]),
            "chunk_size": 256,
        }
        for i in range(len(log))
    ]
    capacities = [max(1, log.unique_chunks * point // SWEEP_POINTS) for point in range(1, SWEEP_POINTS + 1)]
    start = time.perf_counter()
    rates = [simulate(events, capacity, 1, fast=True)["token_hit_rate"] for capacity in capacities]
    seconds = time.perf_counter() - start
    curve = hit_rate_curve(log, touch_order="head_first")
    if rates != [curve.hit_rate(capacity, "whole_prompts") for capacity in capacities]:
        raise RuntimeError("LMCache's sweep and the head-first curve differ")
    return Line(f"LMCache's own sweep, {SWEEP_POINTS} capacities", SWEEP_POINTS * len(log.chunk_ids), seconds)


def main() -> None:
    """Measure, print, and write the results."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--large", action="store_true", help="also a log of 100 M chunk accesses")
    options = arguments.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # of Google's packages, which lmcache imports
    log = growing_conversations(1_000_000)
    lines = [*measure(log), from_a_file(log), lmcaches_sweep(log)]
    if options.large:
        big = growing_conversations(100_000_000)
        lines.append(Line(LARGE, len(big.chunk_ids), best_of(1, lambda: hit_rate_curve(big)), "<= 60 s, <= 4 GB"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = report(log, lines, peak, large=options.large)
    print(text)
    (RESULTS / "prediction.md").write_text(text)
    figures = {"machine": machine(), "peak_gib": peak, "lines": [asdict(line) for line in lines]}
    (RESULTS / "prediction.json").write_text(json.dumps(figures, indent=1) + "\n")


def report(log: AccessLog, lines: list[Line], peak: float, *, large: bool) -> str:
    """The figures as Markdown, with each one's time against LMCache's sweep."""
    sweep = next(line for line in lines if line.what.startswith("LMCache"))
    rows = [
        f"| {line.what} | {line.seconds * 1e3:,.1f} ms | {line.rate / 1e6:,.1f} M/s "
        f"| {'-' if line.what == LARGE else f'{sweep.seconds / line.seconds:,.0f}'} | {line.target} |"
        for line in lines
    ]
    note = f" Peak memory of the process {peak:.1f} GiB, the log of 100 M chunks included." if large else ""
    return (
        "\n".join(
            [
                "# Speed of the predictions",
                "",
                f"{machine()}, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}. Log in memory: {len(log):,} requests, "
                f"{len(log.chunk_ids):,} chunks, {log.unique_chunks:,} distinct. Best of several, after warm-up.{note}",
                "",
                "| what | time | chunk accesses | LMCache's sweep takes this many times longer | target |",
                "|---|--:|--:|--:|---|",
                *rows,
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
