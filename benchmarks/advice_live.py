"""What `tune_cache` in mode auto takes of the gain that an exhaustive search on live servers shows to be reachable.

Run from the repository root (some two and a half hours; less where results are kept)::

    PYTHONPATH=. python benchmarks/advice_live.py [--only NAME]

Each case is a workload and a shape of production: world size 4, two models of unequal size, an L2, an engine's own cache (L0).
Each is asked two questions: what may be gained within the present memory, and with twice as much.

* The answer: `tune_cache` runs twice, minutes apart, against a live server with LMCache's default eviction settings as traffic
  goes on. It may act, try a small gain, or leave things alone; the settings in force at the end are its answer. The second run
  rests on all that was seen since the last change, as in `lmcache-agent watch`.
* The search: the workload is replayed into a fresh server for each setting of a grid. The first setting, the best two of the grid
  and the answer are replayed several times, because the moment of eviction changes the result of a single replay. Each begins at
  a random moment between two looks of the eviction thread.

Replays and answers that are already in the result file are not run again; delete the file to start over.
"""

import argparse
import datetime as dt
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from prediction import machine
from prediction_live import CHUNK_BYTES, CHUNK_TOKENS, EVICTION, RESULTS, workloads

from agent_tools.arena_file import reserve
from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, ConfigUpdate, Mode
from agent_tools.operations import Operations
from agent_tools.prediction.engine_cache import engine_caches
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplayResult, replay
from agent_tools.workload.schedule import ReplayedModel, ReplaySettings

SHARE = 0.25
"""The first L1, as a share of the bytes of the workload's distinct chunks."""
L2_SHARE = 0.5
"""Size of L2, likewise."""
SHAPES = tuple((watermark, ratio) for watermark in (0.5, 0.65, 0.8, 0.9) for ratio in (0.05, 0.2))
FACTORS = {"the same memory": 1.0, "twice the memory": 2.0}
"""The questions: the largest L1 allowed, as a multiple of the first."""
SECONDS = 66.0
"""A replay takes so long: three times that of `prediction_live`, since each eviction tick moves the result of a short one."""
PATIENCE = 300.0
"""Longest verification or trial, seconds."""
LOOKS = 2
"""Runs of `tune_cache` for an answer: the first sees one replay, and what a small cache gives changes from one to the next."""
EVERY = 240.0
"""Seconds between the end of one and the start of the next."""
AT_ONCE = 4
"""Replays side by side, each into a server of its own."""
STORE = RESULTS / "advice_live.json"


@dataclass(frozen=True)
class Setting:
    """What is searched."""

    size_mb: float
    watermark: float
    ratio: float
    policy: str = "lru"

    def __str__(self) -> str:
        """Return the key under which its replays are kept."""
        policy = "" if self.policy == "lru" else f", {self.policy}"
        return f"{self.size_mb:.2f} MB, {self.watermark:g}/{self.ratio:g}{policy}"


def one_engine(ranks: int = 1, chunk_bytes: int = CHUNK_BYTES) -> ReplayedModel:
    """Return an engine whose chunks take `chunk_bytes` bytes over all ranks."""
    return ReplayedModel(world_size=ranks, kv_bytes_per_token=chunk_bytes // CHUNK_TOKENS)


@dataclass(frozen=True)
class Case:
    """A workload and the shape of what serves it."""

    workload: str
    engines: dict[str, ReplayedModel] = field(default_factory=lambda: {"model": one_engine()})
    """Engines by model. The requests are divided among them in equal parts, at random."""
    own_share: float = 0.0
    """Size of the engine's own cache, as a share of the distinct tokens; 0 without one. The gain is then in saved tokens."""
    l2: bool = False
    repeats: int = 3
    """Replays of each setting that is compared. A small cache turns over between a few ticks, so its replays differ more."""

    @cached_property
    def log(self) -> AccessLog:
        """The workload, with the models of its requests. Models share no chunks: prompts are hashed with the model's name."""
        log = workloads()[self.workload]
        models = np.random.default_rng(1).integers(len(self.engines), size=len(log)).astype(np.int16)
        return replace(log, models=models, model_names=tuple(self.engines))

    @cached_property
    def bytes_(self) -> int:
        """Bytes of the workload's distinct chunks."""
        label = np.repeat(self.log.models, self.log.chunks_per_request)
        distinct = np.unique(np.stack([label, self.log.chunk_ids]), axis=1)[0]
        sizes = [CHUNK_TOKENS * (one.kv_bytes_per_token or 0) for one in self.engines.values()]
        return int(np.bincount(distinct, minlength=len(sizes)) @ sizes)

    @property
    def first(self) -> Setting:
        """The setting at first: LMCache's own."""
        largest = CHUNK_TOKENS * max(one.kv_bytes_per_token or 0 for one in self.engines.values())
        return Setting(int(SHARE * self.bytes_) // largest * largest / MB, 0.8, 0.2)

    def grid(self) -> list[Setting]:
        """Return every setting of the exhaustive search."""
        return [Setting(factor * self.first.size_mb, *shape) for factor in FACTORS.values() for shape in SHAPES]

    def allowed(self, question: str, settings: Iterable[Setting]) -> list[Setting]:
        """Return the settings within the memory of a question; a rounded size may exceed it a little."""
        return [one for one in settings if one.size_mb <= FACTORS[question] * self.first.size_mb + 0.01]

    @property
    def own_tokens(self) -> int | None:
        """Size of the engine's own cache, tokens."""
        return round(self.own_share * self.log.unique_chunks * CHUNK_TOKENS) or None

    def rate(self, result: ReplayResult) -> float:
        """Return the share of the whole-chunk tokens that was hit; with an own cache, what was saved beyond it."""
        hits, chunks = result.hits.astype(np.int64), self.log.chunks_per_request.sum()
        if self.own_tokens:
            hits = np.maximum(hits - engine_caches(self.log, [self.own_tokens])[0].hits, 0)
        return float(hits.sum() / chunks)

    def replay_settings(self) -> ReplaySettings:
        """Return how the log is sent: in `SECONDS`, from one client of each model."""
        return ReplaySettings(clients=1, pace=self.log.duration / SECONDS, models=self.engines)


CASES = {
    "conversation": Case("conversation"),
    "agents": Case("agents", {"model": one_engine(1, 8 * CHUNK_BYTES)}),
    "miniswe": Case("miniswe", {"model": one_engine(1, 32 * CHUNK_BYTES)}, repeats=9),
    "agents, world size 4": Case("agents", {"model": one_engine(4, 8 * CHUNK_BYTES)}),
    "conversation, two models 8 : 1": Case("conversation", {"big": one_engine(2, 8 * CHUNK_BYTES), "small": one_engine()}),
    "conversation, with an L2": Case("conversation", l2=True),
    "conversation, behind an engine's own cache": Case("conversation", own_share=0.1),
}


@contextmanager
def server(case: Case, setting: Setting) -> Iterator[ServerProcess]:
    """Start a fresh `lmcache server` with our module, set so; nothing is left of it."""
    with (
        tempfile.TemporaryDirectory(prefix="advice-") as folder,
        tempfile.TemporaryDirectory(prefix="l2-") as l2,
        tempfile.TemporaryDirectory(prefix="advice-", dir="/dev/shm") as arenas,
    ):
        size = int(setting.size_mb * MB)
        module = {
            "module_path": "agent_tools.server_module",
            "config": {"arena_folder": arenas, "max_l1_mb": 4 * case.first.size_mb},
        }
        flags: Flags = {
            "--l1-size-gb": size / 2**30,
            "--l1-devdax-path": str(reserve(Path(arenas), size)),
            "--no-l1-use-lazy": True,
            "--shm-name": "",
            "--chunk-size": CHUNK_TOKENS,
            "--eviction-policy": "LRU",
            "--eviction-trigger-watermark": setting.watermark,
            "--eviction-ratio": setting.ratio,
            "--supported-transfer-mode": "auto",
            "--server-module": json.dumps(module),
        }
        if case.l2:
            capacity = L2_SHARE * case.bytes_ / 2**30
            adapter = {"type": "fs_native", "base_path": l2, "max_capacity_gb": capacity, "eviction": EVICTION}
            flags["--l2-adapter"] = json.dumps(adapter)
        process = ServerProcess.launch(flags, Path(folder))
        try:
            io_loop.run(process.wait_ready)
            yield process
        finally:
            io_loop.run(process.stop)


@contextmanager
def operations_of(process: ServerProcess, case: Case, bounds: Bounds) -> Iterator[Operations]:
    """Yield the product's own operations on a server."""
    with tempfile.TemporaryDirectory(prefix="state-") as state:
        given = {"target": process.http_url, "bounds": bounds, "cooldown_seconds": 0}
        cache = CacheSettings.model_validate(given | ({"engine_cache_tokens": case.own_tokens} if case.own_tokens else {}))
        operations = Operations(Registry(Settings(caches={DEFAULT: cache}, state_folder=Path(state))))
        try:
            yield operations
        finally:
            io_loop.run(operations.close)


def rate_of(case: Case, setting: Setting) -> float:
    """Return what one replay into a fresh server gives."""
    with server(case, setting) as process:
        if setting.policy != "lru":
            with operations_of(process, case, Bounds()) as operations:
                update = ConfigUpdate.model_validate({"eviction_policy": setting.policy})
                io_loop.run(operations.configure, DEFAULT, update, "benchmark", "benchmark")
        time.sleep(random.uniform(0, 1))  # noqa: S311  no secret
        return case.rate(replay(case.log, process.rpc_url, case.replay_settings()))


def answer(case: Case, factor: float) -> tuple[Setting, list[TuneReport]]:
    """Return the settings in force after `LOOKS` runs of `tune_cache` in mode auto, under traffic, and what each reported."""
    most = factor * case.first.size_mb
    bounds = Bounds(max_size_mb=most, trial_mb=most - case.first.size_mb)
    with (
        server(case, case.first) as process,
        operations_of(process, case, bounds) as operations,
        beside(partial(send, case, process)),
    ):
        io_loop.run(operations.metrics, DEFAULT)
        with beside(partial(watch, operations)):
            reports = [look(operations, pause) for pause in (SECONDS, *[EVERY] * (LOOKS - 1))]
        known = io_loop.run(operations.settings, DEFAULT).known()
    wanted = [known[name] for name in ("max_size_mb", "eviction_watermark", "eviction_ratio", "eviction_policy")]
    return Setting(*wanted), reports


def look(operations: Operations, pause: float) -> TuneReport:
    """Run `tune_cache` after a pause, on all that was seen since the last change, as `lmcache-agent watch` does."""
    time.sleep(pause)
    seen = max(SECONDS, io_loop.run(operations.steady_seconds, DEFAULT))
    context = TuneContext(mode=Mode.AUTO, window_seconds=seen, verify_seconds=PATIENCE)
    told = build_tune_cache(operations=operations).compile().invoke({"tune_reason": "benchmark"}, context=context)
    report = TuneReport.model_validate(told["tune_report"])
    if report.outcome is Outcome.FAILED:
        raise RuntimeError(report.summary)
    return report


@contextmanager
def beside(work: Callable[[threading.Event], object]) -> Iterator[None]:
    """Work in a thread while a block runs; the event tells when it is over."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def send(case: Case, process: ServerProcess, over: threading.Event) -> None:
    """Send the workload again and again, each time with other prompts."""
    copies = int((2 * SECONDS + LOOKS * (EVERY + PATIENCE)) / SECONDS) + 2
    replay(endless(case.log, copies), process.rpc_url, case.replay_settings(), stop=over)


def endless(log: AccessLog, copies: int) -> AccessLog:
    """Return copies of a log, one after the other. Each has chunks of its own."""
    step, period = log.unique_chunks, log.duration + float(np.diff(log.timestamps).mean())
    lengths = np.tile(log.chunks_per_request, copies)
    return replace(
        log,
        chunk_ids=np.concatenate([log.chunk_ids + copy * step for copy in range(copies)]).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        tokens=np.tile(log.tokens, copies),
        timestamps=np.concatenate([log.timestamps - log.timestamps[0] + copy * period for copy in range(copies)]),
        tenants=np.tile(log.tenants, copies),
        models=np.tile(log.models, copies),
        sessions=None,
        think_seconds=None,
    )


def watch(operations: Operations, over: threading.Event) -> None:
    """Read the cache, as an agent does that looks after it."""
    while not over.wait(READ_EVERY):
        with suppress(LMCacheToolError):
            io_loop.run(operations.metrics, DEFAULT)


class Bench:
    """All results so far, kept in the result file after each."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
        self._writing = threading.Lock()

    def answers(self, cases: dict[str, Case]) -> None:
        """Ask what was not asked yet."""
        asked = [
            (name, question) for name in cases for question in FACTORS if question not in self._of(name).setdefault("answers", {})
        ]

        def one(name: str, question: str) -> None:
            try:
                setting, reports = answer(cases[name], FACTORS[question])
            except Exception as error:  # noqa: BLE001  the others go on, and this one is asked again
                print(name, question, f"{type(error).__name__}: {error}", flush=True)
                return
            looks = [{"outcome": one.outcome.value, "summary": one.summary} for one in reports]
            found = {"setting": asdict(setting), "looks": looks}
            print(name, question, found, flush=True)
            self._keep(lambda: self._of(name)["answers"].update({question: found}))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda pair: one(*pair), asked))

    def search(self, name: str, case: Case) -> None:
        """Measure the grid and the answers of one case."""
        grid, first = case.grid(), case.first
        self._replays(name, case, grid, 1)
        often = [first]
        for question in FACTORS:
            often += sorted(case.allowed(question, grid), key=lambda one: -self.rate(name, one))[:2]
            if question in self._of(name)["answers"]:
                often.append(self.answered(name, question))
        self._replays(name, case, often, case.repeats)

    def answered(self, name: str, question: str) -> Setting:
        """Return the answer to a question."""
        return Setting(**self.kept[name]["answers"][question]["setting"])

    def rate(self, name: str, setting: Setting) -> float:
        """Return the mean of all replays of a setting."""
        return float(np.mean(self._rates(name)[str(setting)]))

    def _replays(self, name: str, case: Case, settings: list[Setting], times: int) -> None:
        """Replay until each setting has so many results."""

        def one(setting: Setting) -> None:
            rate = rate_of(case, setting)
            print(name, setting, f"{rate:.4f}", flush=True)
            self._keep(lambda: self._rates(name)[str(setting)].append(rate))

        rates, distinct = self._rates(name), {str(one): one for one in settings}
        missing = [setting for key, setting in distinct.items() for _ in range(times - len(rates.setdefault(key, [])))]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(one, missing))

    def _of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kept.setdefault(name, {})
        return found

    def _rates(self, name: str) -> dict[str, list[float]]:
        rates: dict[str, list[float]] = self._of(name).setdefault("replays", {})
        return rates

    def _keep(self, note: Callable[[], object]) -> None:
        with self._writing:
            note()
            STORE.write_text(json.dumps(self.kept, indent=1) + "\n")

    def report(self) -> str:
        """Return the answers against the best of the grid, as Markdown."""
        rows, taken, reachable = [], 0.0, 0.0
        for name, kept in self.kept.items():
            case = CASES[name]
            for question in kept.get("answers", {}):
                answered, best = self.answered(name, question), self._best(name, question)
                if best is None or len(self._rates(name).get(str(answered), [])) < case.repeats:
                    continue
                now, then, most = (self.rate(name, one) for one in (case.first, answered, best))
                taken, reachable = taken + then - now, reachable + most - now
                shown = " | ".join(f"{one} | {_spread(self._rates(name)[str(one)])}" for one in (case.first, answered, best))
                outcome = ", then ".join(one["outcome"] for one in kept["answers"][question]["looks"])
                gains = " | ".join(f"{100 * (rate - now):+.1f}" for rate in (then, most))
                rows.append(f"| {name} | {question} | {shown} | {gains} | {outcome} |")
        remarks = [f"* `{name}`: {kept['remark']}" for name, kept in self.kept.items() if "remark" in kept]
        share = f" Taken: {taken / reachable:.0%} of the reachable gain of {len(rows)} questions." if reachable else ""
        return (
            "\n".join(
                [
                    "# What `tune_cache` takes of the reachable gain",
                    "",
                    f"{machine()}, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}. Token hit rates of live servers (behind an"
                    f" engine's cache: tokens saved beyond it), means of several replays of {SECONDS:.0f} s, with the largest"
                    f" minus the smallest. The grid: {len(SHAPES)} pairs of watermark and ratio at each size. The answer is what"
                    f" is in force after {LOOKS} runs of `tune_cache` in mode auto, trials included.{share}",
                    "",
                    "| workload | may choose from | first setting | its rate | answer | its rate | best of grid and answer |"
                    " its rate | taken, points | reachable | outcomes |",
                    "|---|---|---|--:|---|--:|---|--:|--:|--:|---|",
                    *rows,
                    "",
                    *remarks,
                ]
            )
            + "\n"
        )

    def _best(self, name: str, question: str) -> Setting | None:
        """Return the best setting within the question's memory that was measured often enough."""
        case = CASES[name]
        every = [*case.grid(), *(self.answered(name, one) for one in self.kept[name]["answers"])]
        often = [one for one in case.allowed(question, every) if len(self._rates(name).get(str(one), [])) >= case.repeats]
        return max(often, key=lambda one: self.rate(name, one), default=None)


def _spread(rates: list[float]) -> str:
    return f"{np.mean(rates):.4f} ({max(rates) - min(rates):.4f})"


def main() -> None:
    """Run what is missing, and write the report."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", default="", help="run only cases whose name contains this")
    only = arguments.parse_args().only
    bench, cases = Bench(), {name: case for name, case in CASES.items() if only in name}
    bench.answers(cases)
    for name, case in cases.items():
        bench.search(name, case)
        STORE.with_suffix(".md").write_text(bench.report())
    print(bench.report())


if __name__ == "__main__":
    main()
