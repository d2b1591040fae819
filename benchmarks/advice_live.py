"""Compare the recommended setting with the best setting of an exhaustive search by replay on live servers.

Run from the repository root (about 40 minutes)::

    PYTHONPATH=. python benchmarks/advice_live.py

For each workload, the benchmark observes a server with LMCache's default eviction settings under load, as `tune_cache` does. It
gets advice twice: within the present memory, and with twice the memory allowed. Then it replays the workload into a fresh server
for the present setting, for the setting that the search ranks first (even if the verdict is that it gains too little), and for
each setting of a grid. It replays the first two and the best two of the grid `REPEATS` times, because the moment of eviction
changes the result of a single replay. Replays that are already in the result file are not run again.
"""

import argparse
import datetime as dt
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from prediction import machine
from prediction_live import CHUNK_BYTES, CHUNK_TOKENS, RESULTS, Cell, Counters, server, workloads

from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Advice, Bounds
from agent_tools.operations import Operations
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplaySettings, replay

SHARE = 0.25
"""The first L1, as a share of the workload's distinct chunks; twice that is allowed in the second question."""
SHAPES = tuple((watermark, ratio) for watermark in (0.5, 0.65, 0.8, 0.9) for ratio in (0.05, 0.2))
REPEATS = 3
SECONDS = 66.0
"""A replay takes so long: three times that of `prediction_live`, since each eviction tick moves the result of a short one."""
AT_ONCE = 3
"""Replays side by side, each into a server of its own."""
STORE = RESULTS / "advice_live.json"

Rates = dict[str, list[float]]
"""Setting in words -> token hit rate of each replay."""


@dataclass(frozen=True)
class Question:
    """What the recommender may choose from."""

    name: str
    sizes: tuple[float, ...]
    """L1 sizes of the grid, as multiples of the first."""


QUESTIONS = (Question("the same memory", (1.0,)), Question("twice the memory", (1.0, 2.0)))


def named(setting: ServerSetting) -> str:
    """A setting in words: the key under which its replays are kept."""
    return f"{setting.capacity_chunks:.0f} chunks, {setting.watermark:g}/{setting.ratio:g}"


def rate_of(log: AccessLog, setting: ServerSetting) -> float:
    """Token hit rate of one replay into a fresh server."""
    folder = tempfile.mkdtemp(prefix="lookup-hashes-")
    try:
        with server(setting, folder, []) as (rpc, http):
            replay(log, rpc, replay_settings(log))
            time.sleep(0.5)  # for the event bus to drain
            values = Counters(http).read()
    finally:
        shutil.rmtree(folder)
    return values["lmcache_mp_lookup_hit_tokens_total"] / values["lmcache_mp_lookup_requested_tokens_total"]


def replay_settings(log: AccessLog) -> ReplaySettings:
    """The log in `SECONDS`, from one client."""
    return ReplaySettings(clients=1, pace=log.duration / SECONDS, kv_bytes_per_token=CHUNK_BYTES // CHUNK_TOKENS)


def within(size_mb: float) -> Bounds:
    """All that the recommender may choose from up to an L1 size."""
    return Bounds(max_size_mb=size_mb, allow_restart=True)


def advise(log: AccessLog, first: ServerSetting) -> tuple[float, dict[str, Advice]]:
    """The first server's hit rate, and the advice on each question after observing it through the product's own operations."""
    folder, state = tempfile.mkdtemp(prefix="lookup-hashes-"), tempfile.mkdtemp(prefix="state-")
    size_mb = first.capacity_chunks * CHUNK_BYTES / MB
    try:
        with server(first, folder, []) as (rpc, http):
            cache = CacheSettings(target=http, access_log=Path(folder), bounds=within(2 * size_mb))
            operations = Operations(Registry(Settings(caches={"bench": cache}, state_folder=Path(state))))
            with watched(operations):
                replay(log, rpc, replay_settings(log))
            time.sleep(0.5)
            given = {
                question.name: io_loop.run(operations.recommend, "bench", None, within(question.sizes[-1] * size_mb))
                for question in QUESTIONS
            }
            measured = io_loop.run(operations.metrics, "bench").tokens.hit_rate
            io_loop.run(operations.close)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(state)
    return measured or 0.0, given


class watched:  # noqa: N801  used as a with statement
    """Reads the cache while a block runs, as the graph does while it observes a window."""

    def __init__(self, operations: Operations) -> None:
        self._operations, self._stop = operations, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(READ_EVERY):
            with suppress(LMCacheToolError):
                io_loop.run(self._operations.metrics, "bench")


def picked(first: ServerSetting, advice: Advice) -> ServerSetting:
    """What the search ranks first; the present setting when nothing else is better."""
    update = advice.recommendations[0].update if advice.recommendations else None
    if update is None:
        return first
    wanted = {
        "capacity_chunks": None if update.max_size_mb is None else update.max_size_mb * MB / CHUNK_BYTES,
        "watermark": update.eviction_watermark,
        "ratio": update.eviction_ratio,
    }
    return replace(first, **{name: value for name, value in wanted.items() if value is not None})


def grid_of(first: ServerSetting) -> Iterator[ServerSetting]:
    """Every setting of the exhaustive search."""
    for size in QUESTIONS[-1].sizes:
        for watermark, ratio in SHAPES:
            yield replace(first, capacity_chunks=round(first.capacity_chunks * size), watermark=watermark, ratio=ratio)


class Bench:
    """All replays so far, kept in the result file after each."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
        self.writing = threading.Lock()

    def run(self, name: str, log: AccessLog) -> None:
        """Everything about one workload."""
        first = Cell(name, SHARE, 0.8, 0.2).setting(log)
        kept = self.kept.setdefault(name, {"replays": {}})
        if "picks" not in kept:
            measured, given = advise(log, first)
            kept |= {
                "first": named(first),
                "first_rate": measured,
                "picks": {q: named(picked(first, advice)) for q, advice in given.items()},
                "verdicts": {q: f"{advice.verdict.value}: {advice.why}" for q, advice in given.items()},
            }
            kept["settings"] = {q: vars(picked(first, advice)) for q, advice in given.items()}
            self.save()
        grid = {named(one): one for one in grid_of(first)}
        picks = {key: ServerSetting(**kept["settings"][q]) for q, key in kept["picks"].items()}
        self.replays(name, log, picks | grid, 1)
        for question in QUESTIONS:
            allowed = [key for key, one in grid.items() if one.capacity_chunks <= first.capacity_chunks * question.sizes[-1] + 1]
            best = sorted(allowed, key=lambda key: -float(np.mean(kept["replays"][key])))[:2]
            again = [named(first), kept["picks"][question.name], *best]
            self.replays(name, log, {key: (picks | grid)[key] for key in again}, REPEATS)

    def replays(self, name: str, log: AccessLog, settings: dict[str, ServerSetting], times: int) -> None:
        """Replay until each setting has so many results."""
        rates: Rates = self.kept[name]["replays"]

        def one(key: str) -> None:
            rate = rate_of(log, settings[key])
            with self.writing:
                rates[key].append(rate)
                print(name, key, f"{rate:.4f}", flush=True)
                self.save()

        missing = [key for key in settings for _ in range(times - len(rates.setdefault(key, [])))]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(one, missing))

    def save(self) -> None:
        """Write the results, and the report of all that is complete."""
        STORE.write_text(json.dumps(self.kept, indent=1) + "\n")

    def report(self) -> str:
        """The picks against the best of the grid, as Markdown."""
        rows = [row for name, kept in self.kept.items() if "picks" in kept for row in self._rows(name, kept)]
        return (
            "\n".join(
                [
                    "# The advice against an exhaustive search by replay",
                    "",
                    f"{machine()}, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}. Token hit rates of live servers, means of"
                    f" {REPEATS} replays of {SECONDS:.0f} s, with the largest minus the smallest. The grid: {len(SHAPES)} pairs"
                    " of watermark and ratio at each size. `picked` is the setting that the search ranks first; the"
                    " verdict is to act only when the lower bound of its gain is a point or more.",
                    "",
                    "| workload | may choose from | present setting | its rate | picked | its rate | best of the grid |"
                    " its rate | short of it by | verdict |",
                    "|---|---|---|--:|---|--:|---|--:|--:|---|",
                    *rows,
                ]
            )
            + "\n"
        )

    def _rows(self, name: str, kept: dict[str, Any]) -> list[str]:
        rates: Rates = kept["replays"]
        first = int(kept["first"].split()[0])
        rows = []
        for question in QUESTIONS:
            allowed = [key for key in rates if int(key.split()[0]) <= first * question.sizes[-1] + 1]
            often = [key for key in allowed if len(rates[key]) >= REPEATS]
            best = max(often, key=lambda key: float(np.mean(rates[key])))
            pick = kept["picks"][question.name]
            short = float(np.mean(rates[best]) - np.mean(rates[pick]))
            shown = " | ".join(f"{key} | {_spread(rates[key])}" for key in (kept["first"], pick, best))
            verdict = kept["verdicts"][question.name].partition(":")[0]
            rows.append(f"| {name} | {question.name} | {shown} | {short:.4f} | {verdict} |")
        return rows


def _spread(rates: list[float]) -> str:
    return f"{np.mean(rates):.4f} ({max(rates) - min(rates):.4f})"


def main() -> None:
    """Run what is missing, and write the report."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    bench = Bench()
    for name, log in workloads().items():
        bench.run(name, log)
        STORE.with_suffix(".md").write_text(bench.report())
    print(bench.report())


if __name__ == "__main__":
    main()
