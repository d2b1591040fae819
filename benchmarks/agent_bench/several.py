"""Several incidents at once: their processes, their traffic without an end, and how each cache was before and after."""

import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import CacheConfig
from agent_tools.models.change import Baseline
from agent_tools.operations import Operations
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.bench import SECONDS, differing, standard_error
from benchmarks.incidents.incident import Incident
from benchmarks.incidents.outcome import Outcome
from benchmarks.incidents.stages import Running, staged


@dataclass
class OneOfSeveral:
    """A running incident."""

    incident: Incident
    stage: Running
    left: list[str]
    """Files of shared memory that it left behind; filled when it has ended."""
    before: Baseline | None = None
    config: CacheConfig = field(default_factory=CacheConfig)
    problems: frozenset[str] = frozenset()


class Several:
    """Running incidents under neutral names, in one set of operations."""

    def __init__(self, running: Mapping[str, OneOfSeveral], operations: Operations) -> None:
        self.running, self.operations = running, operations

    def observe(self, seconds: float) -> None:
        """Let the traffic run, provoke what is to be provoked in the middle, and note how each cache is."""
        began = time.time()
        self._note_settings()
        time.sleep(seconds / 2)
        for one in self.running.values():
            if one.incident.provoke is not None:
                one.incident.provoke(one.stage)
        time.sleep(max(seconds / 2, began + seconds - time.time()))
        for name, one in self.running.items():
            one.before = self._baseline(name, time.time() - began)
            one.problems |= self._problems(name)

    def outcome(self, name: str, changed_at: float | None, least_seconds: float) -> Outcome:
        """Return how a cache is now against how it was, since its last change or for `least_seconds`."""
        one = self.running[name]
        assert one.before is not None  # noqa: S101  observed first
        after = self._baseline(name, least_seconds if changed_at is None else time.time() - changed_at)
        now = io_loop.run(self.operations.settings, name)
        return Outcome(
            differences=tuple(sorted(now.differences)),
            rate_before=one.before.metrics.tokens.hit_rate,
            rate_after=after.metrics.tokens.hit_rate,
            noise=2 * math.hypot(standard_error(one.before), standard_error(after)),
            problems_before=tuple(sorted(one.problems)),
            problems_after=tuple(sorted(self._problems(name))),
            differing_settings=differing(one.config, now),
            failures=tuple(one.stage.failures),
        )

    def _note_settings(self) -> None:
        for name, one in self.running.items():
            one.config = io_loop.run(self.operations.settings, name)
            one.problems = self._problems(name)

    def _baseline(self, name: str, seconds: float) -> Baseline:
        return io_loop.run(self.operations.baseline, name, seconds)

    def _problems(self, name: str) -> frozenset[str]:
        return frozenset(io_loop.run(self.operations.status, name).health.problems)


@contextmanager
def several(incidents: Mapping[str, Incident], minutes: float) -> Iterator[Several]:
    """Start incidents under these names, all at once, with traffic for so many minutes; afterwards all is stopped."""
    rounds = max(1, math.ceil(60 * minutes / SECONDS))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-bench-")))
        running = {}
        for name, incident in incidents.items():
            lasting = replace(incident, traffic=partial(_repeated, incident, rounds))
            stage, left = stack.enter_context(staged(lasting, rounds * SECONDS))
            running[name] = OneOfSeveral(incident, stage, left)
        caches = {name: CacheSettings(bounds=one.incident.bounds, **one.stage.settings) for name, one in running.items()}
        operations = Operations(Registry(Settings(caches=caches, state_folder=folder / "state")))
        stack.callback(lambda: io_loop.run(operations.close))
        stack.enter_context(_watched(operations, tuple(caches)))
        for one in running.values():
            stack.callback(one.stage.halt)
            one.stage.begin()
        yield Several(running, operations)


def _repeated(incident: Incident, rounds: int) -> AccessLog | None:
    log = incident.traffic()
    return None if log is None else repeated(log, rounds)


def repeated(log: AccessLog, rounds: int) -> AccessLog:
    """Return the same traffic so many times, one after the other. Each round asks for prompts of its own."""
    tiled = log.select(np.tile(np.arange(len(log)), rounds))
    round_of_chunk = np.repeat(np.arange(rounds), len(log.chunk_ids))
    round_of_request = np.repeat(np.arange(rounds), len(log))
    period = log.duration + log.duration / max(len(log) - 1, 1)
    return replace(
        tiled,
        chunk_ids=(tiled.chunk_ids + round_of_chunk * log.unique_chunks).astype(np.int32),
        timestamps=tiled.timestamps + round_of_request * period,
        hashes=None,
        sessions=None,
        think_seconds=None,
    )


@contextmanager
def _watched(operations: Operations, names: tuple[str, ...]) -> Iterator[None]:
    """Read the caches all the while, as an agent does that looks after them."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(READ_EVERY):
            for name in names:
                with suppress(LMCacheToolError):
                    io_loop.run(operations.metrics, name)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
