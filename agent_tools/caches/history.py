"""What was read of a cache over time, so that figures can be given for any window seen so far."""

import hashlib
from collections import deque
from itertools import pairwise

import numpy as np

from agent_tools.deployments.snapshot import Served, Snapshot, tokens_between
from agent_tools.models import CacheConfig
from agent_tools.prediction.eviction_clock import Poll
from agent_tools.serving.engine_reading import EngineReading
from agent_tools.serving.engine_window import loaded_between
from agent_tools.workload.access_log import AccessLog

MOST_INTERVALS = 600
"""Intervals kept in a baseline; more are merged."""
KEPT = 7200
"""Readings kept per cache: two hours at one a second."""
MOST_SERIES = 500_000
"""Token counters kept per cache, over all readings: some 100 MB. With many tenants, the history reaches back less far."""
ALWAYS_KEPT = 10
"""Readings kept whatever they hold."""
MOST_POLLS = 300
"""Latest tick readings used; the thread's period drifts over longer times."""

MOST_OF_ENGINE = 600
"""Latest readings of the engine used: its speed is that of the present traffic."""


class History:
    """The latest readings of one cache, oldest first."""

    def __init__(self) -> None:
        self._snapshots: deque[Snapshot] = deque()
        self._series = 0
        self._polls: deque[Poll] = deque(maxlen=MOST_POLLS)
        self._engine: deque[EngineReading] = deque(maxlen=MOST_OF_ENGINE)
        self._settings: tuple[object, ...] | None = None
        self.changed_at: float | None = None
        """Unix time at which the settings were first read back differently, whoever changed them; ``None`` if they never were."""

    def settings_read(self, config: CacheConfig, at: float) -> bool:
        """Note the settings that were in force at a Unix time. Return whether they differ from the ones noted before."""
        settings = (config.known(), config.differences)
        differ = self._settings is not None and settings != self._settings
        self._settings = settings
        if differ:
            self.changed_at = at
        return differ

    def unchanged_since(self, start: Snapshot) -> bool:
        """Return whether no change of settings was noticed after a reading was asked for."""
        return self.changed_at is None or self.changed_at <= start.asked_at

    def add(self, snapshot: Snapshot) -> None:
        """Append a reading."""
        if self.latest is None or self.latest.process_start != snapshot.process_start:
            self._polls.clear()
        self._snapshots.append(snapshot)
        self._series += _series_of(snapshot)
        while len(self._snapshots) > KEPT or (self._series > MOST_SERIES and len(self._snapshots) > ALWAYS_KEPT):
            self._series -= _series_of(self._snapshots.popleft())
        if snapshot.counters is not None:
            self._polls.append(Poll(snapshot.asked_at, snapshot.taken_at, snapshot.counters.eviction_ticks))
        if snapshot.engine is not None and snapshot.engine not in (*self._engine,)[-1:]:
            self._engine.append(snapshot.engine)

    @property
    def latest(self) -> Snapshot | None:
        """The last reading."""
        return self._snapshots[-1] if self._snapshots else None

    def at_or_before(self, instant: float) -> Snapshot | None:
        """The last reading at or before a Unix time; ``None`` when the history does not reach back so far."""
        return next((s for s in reversed(self._snapshots) if s.taken_at <= instant), None)

    def first_of_process(self, latest: Snapshot, since: float | None = None) -> Snapshot:
        """The earliest reading of the cache process that `latest` is of, asked for at or after a Unix time if one is given."""
        return next((s for s in self._snapshots if (since is None or s.asked_at >= since) and latest.follows(s)), latest)

    def polls(self) -> list[Poll]:
        """The latest readings of the eviction thread's tick counter, of the cache process that was read last."""
        return list(self._polls)

    def engine_readings(self) -> list[EngineReading]:
        """The latest readings of the serving engine, oldest first, each once."""
        return list(self._engine)

    def served(self, start: float, end: float) -> list[Served]:
        """What was counted between successive readings of one process within [start, end], Unix times."""
        inside = [s for s in self._snapshots if start <= s.taken_at <= end]
        # Where the engine did not answer, its last reading stands for it, and the next one counts for both.
        engines: list[EngineReading | None] = [None]
        for snapshot in inside:
            engines.append(snapshot.engine or engines[-1])
        successive = pairwise(zip(inside, engines[1:], strict=True))
        return [_served(a, b, loaded_between(before, after)) for (a, before), (b, after) in successive if b.follows(a)]


def _served(before: Snapshot, after: Snapshot, loaded: int | None) -> Served:
    tokens = tokens_between(before, after)
    return Served(before.taken_at, after.taken_at, tokens.requested, tokens.hit, loaded)


def _series_of(snapshot: Snapshot) -> int:
    return len(snapshot.tokens) + sum(map(_series_of, snapshot.members.values()))


def requests_digest(log: AccessLog) -> str | None:
    """Digest of a log's requests whatever their order: of the hash of each one's last chunk, which stands for all of it."""
    if log.hashes is None:
        return None
    whole = log.offsets[1:] > log.offsets[:-1]
    ends = sorted(log.hashes[chunk].tobytes() for chunk in log.chunk_ids[log.offsets[1:][whole] - 1])
    return hashlib.sha256(b"".join(ends)).hexdigest()[:16]


def merged(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """At most `MOST_INTERVALS`, neighbours added up."""
    if len(rows) <= MOST_INTERVALS:
        return rows
    return [tuple(map(int, part.sum(axis=0))) for part in np.array_split(np.array(rows), MOST_INTERVALS)]
