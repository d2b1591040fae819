"""The requests of a simulated cache: generated or recorded traffic, and additional requests that were sent to it."""

from dataclasses import replace
from hashlib import blake2b

import numpy as np

from agent_tools.errors import WorkloadError
from agent_tools.prediction.chunk_size import with_larger_chunks
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.live_window import LiveHitRateCurve
from agent_tools.workload.access_log import AccessLog, in_time_order
from agent_tools.workload.generate import AgentTraffic

MODEL = "simulated"
"""Model name of requests whose log has none."""
MOST_REQUESTS = 10_000_000
"""Number of requests after which generated traffic ends."""


class Traffic:
    """All requests of one simulated cache, as a log that only grows at its end.

    Times are seconds since the server first started. A chunk's hash has 8 bytes and depends on the chunk numbers of its prefix:
    two logs with the same chunk numbers send the same prompts.
    """

    def __init__(self, workload: AgentTraffic | AccessLog | None, chunk_size: int, speed: float) -> None:
        """Start without requests. See `until`.

        Args:
            workload: Traffic to generate without end, a recorded log, or ``None`` for sent requests only.
            chunk_size: Tokens per chunk of the cache.
            speed: How many times faster than recorded the workload runs.

        Raises:
            WorkloadError: The cache's chunk size is not a multiple of the recorded one.
        """
        self._generated = workload if isinstance(workload, AgentTraffic) else None
        self._workload = _at(workload, speed) if isinstance(workload, AccessLog) else None
        self._sent: list[AccessLog] = []
        self._speed = speed
        self._begin = -np.inf
        self._chunk_size = chunk_size
        self._log: AccessLog | None = None
        if (why := self.obstacle(chunk_size)) is not None:
            raise WorkloadError(why)

    def obstacle(self, chunk_size: int, instant: float = -np.inf) -> str | None:
        """Return why the requests after an instant cannot be cut into chunks of this size, or ``None`` if they can."""
        recorded = [*self._sent, *([] if self._generated or self._workload is None else [self._workload])]
        odd = next((log.chunk_size for log in recorded if _lasts(log, instant) and chunk_size % log.chunk_size), None)
        return (
            None if odd is None else f"requests recorded in chunks of {odd} tokens need a chunk size that is a multiple of {odd}"
        )

    def restart(self, chunk_size: int, instant: float) -> None:
        """Keep only the requests after an instant, in chunks of `chunk_size` tokens."""
        self._begin, self._chunk_size, self._log = instant, chunk_size, None
        self._sent = [log for log in self._sent if _lasts(log, instant)]
        if self._generated or (self._workload is not None and not _lasts(self._workload, instant)):
            self._workload = None

    def send(self, log: AccessLog, instant: float, pace: float, model: str = MODEL) -> None:
        """Add requests. The first one comes right after an instant, which must not be in the past.

        Args:
            log: The requests.
            instant: When the first request comes, seconds.
            pace: How many times faster than recorded the requests come.
            model: Model name for requests of a log without one.

        Raises:
            WorkloadError: The cache's chunk size is not a multiple of the log's. Nothing was sent.
        """
        self._sent.append(_named(_at(log, pace, instant), model))
        self._log = None
        if (why := self.obstacle(self._chunk_size)) is not None:
            self._sent.pop()
            raise WorkloadError(f"{why}, but this cache has chunks of {self._chunk_size} tokens. Nothing was sent")

    def until(self, instant: float) -> AccessLog:
        """Return the log of all requests since the restart, up to `instant` or later. Separate KV has separate ids."""
        if self._generated is not None and self._generate(self._generated, instant):
            self._log = None
        if self._log is None:
            self._log = self._joined()
        return self._log

    def _generate(self, traffic: AgentTraffic, instant: float) -> bool:
        """Generate more of the same traffic if it does not reach `instant`. Return whether there is more now."""
        have = self._workload
        while have is None or (have.timestamps[-1] <= instant and len(have) < MOST_REQUESTS):
            # With the same seed, a longer generation starts with the same requests.
            requests = traffic.requests if have is None else min(2 * len(have), MOST_REQUESTS)
            log = traffic.model_copy(update={"requests": requests, "chunk_size": self._chunk_size}).generate()
            have = _at(log, self._speed)
        more, self._workload = have is not self._workload, have
        return more

    def _joined(self) -> AccessLog:
        parts = [*([] if self._workload is None else [_named(self._workload)]), *self._sent]
        joined = LiveHitRateCurve(history_chunks=2**62)
        for log in parts or [_nothing(self._chunk_size)]:
            joined.add(with_larger_chunks(log, self._chunk_size // log.chunk_size))
        log = in_time_order(joined.log())
        first = int(np.searchsorted(log.timestamps, self._begin, side="right"))
        return isolated(log.select(slice(first, None)) if first else log)


def _at(log: AccessLog, pace: float, begin: float = 0.0) -> AccessLog:
    """Return the log with its first request at `begin`, `pace` times as fast."""
    return replace(log, timestamps=begin + (log.timestamps - log.timestamps[:1]) / pace)


def _lasts(log: AccessLog, instant: float) -> bool:
    return len(log) > 0 and bool(log.timestamps[-1] > instant)


def _named(log: AccessLog, model: str = MODEL) -> AccessLog:
    """Return the log with a hash for each chunk, chained like LMCache's, and with a model name if it has none."""
    first = np.flatnonzero(np.diff(np.maximum.accumulate(log.chunk_ids), prepend=-1))  # ids are numbered by first appearance
    parents = np.where(np.isin(first, log.offsets[:-1]), -1, log.chunk_ids[first - 1])
    hashes: list[bytes] = []
    for chunk, parent in enumerate(parents.tolist()):
        prefix = hashes[parent] if parent >= 0 else b""
        hashes.append(blake2b(prefix + chunk.to_bytes(8, "big"), digest_size=8).digest())
    names = tuple(name or model for name in log.model_names)
    return replace(log, model_names=names, hashes=np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 8))


def _nothing(chunk_size: int) -> AccessLog:
    none = np.zeros(0, np.int16)
    return AccessLog(
        chunk_size=chunk_size,
        chunk_ids=np.zeros(0, np.int32),
        offsets=np.zeros(1, np.int64),
        tokens=np.zeros(0, np.int64),
        timestamps=np.zeros(0),
        tenants=none,
        models=none,
        model_names=(MODEL,),
        hashes=np.zeros((0, 8), np.uint8),
    )
