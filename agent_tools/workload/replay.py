"""Replay of an access log into a real ``lmcache server``: real KV, several engines at once, at any pace."""

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from agent_tools.errors import CacheDiedError, UnsupportedError, WorkloadError
from agent_tools.extras import installing
from agent_tools.lmcache_import import importing_lmcache
from agent_tools.plain import plain

from .access_log import AccessLog
from .schedule import ReplayedModel, ReplaySettings, Schedule

if TYPE_CHECKING:
    from .kv_client import Engine, KVClient, Outcome

Progress = Callable[[int, int], None]
"""Called with the number of finished requests and of all requests, from the thread that called `replay`."""

_TICK = 0.1
"""Seconds between two checks of the stop event, and between two progress reports."""
_NOT_RUN = -1
_SALT_LENGTH, _NOT_IN_SALTS = 128, frozenset("@/\\\0")
"""The limits of LMCache 0.5.6 on a cache salt (`IPCCacheServerKey`)."""


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """What the client observed. The server's own counters say what was really kept, dropped and evicted."""

    chunk_size: int
    """Tokens per chunk."""
    hits: npt.NDArray[np.int32]
    """(requests,) chunks found for each request of the log; -1 if it was not run."""
    started: npt.NDArray[np.float64]
    """(requests,) start of each request, seconds from the start of the replay; NaN if it was not run."""
    requests: int
    """Number of requests run."""
    skipped: int
    """Number of requests not run, because of the time limit or a stop."""
    tokens: int
    """Prompt tokens of the requests run."""
    requested_chunks: int
    """Whole chunks of the requests run."""
    hit_chunks: int
    """Chunks of the requests run that were found in the cache."""
    sent_chunks: int
    """Chunks sent to the server to be stored. LMCache 0.5.6 also accepts a store that it drops because L1 is full."""
    corrupt_chunks: int
    """Chunks that came back with the KV of another chunk, or damaged."""
    failed_retrieves: int
    """Number of requests with found chunks that could not be retrieved afterwards."""
    refused_stores: int
    """Number of requests whose store the server refused."""
    seconds: float
    """Seconds from the first request to the last answer."""
    lag_seconds: float
    """With a pace: the longest delay of a request behind its time, seconds. A large lag means that the pace was too fast."""

    @property
    def hit_rate(self) -> float | None:
        """Return the share of the requested chunks that were found, in [0, 1]; ``None`` if none was requested."""
        return self.hit_chunks / self.requested_chunks if self.requested_chunks else None


def replay(
    log: AccessLog,
    rpc_url: str,
    settings: ReplaySettings | None = None,
    *,
    stop: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> ReplayResult:
    """Send a log's requests to the server at ``tcp://host:port``, with real KV tensors, and check what comes back.

    Each tenant's name is its cache salt. Requests start in the log's order. No request starts before the request that first had
    its longest known prefix has ended: an agent's next turn waits for the turn before. With one client the order is exactly the
    log's. With a pace, turns with a think time are sent in a closed loop (see `Schedule`). When `stop` is set, or the call is
    interrupted, no further request starts, running requests end, and the clients unregister.

    Raises:
        UnreachableError: Nothing listens there. Nothing was sent.
        NotLMCacheError: Something other than LMCache's request protocol answers there. Nothing was sent.
        UnsupportedError: lmcache is not installed, or the server does not accept KV from such a client. Nothing was sent.
        WorkloadError: The log does not suit the server. Nothing was sent.
        CacheDiedError: The server went away, or stopped answering, during the replay.
    """
    settings = settings or ReplaySettings()
    schedule, tally = Schedule(log, settings), _Tally(log)
    with _clients(log, rpc_url, settings, schedule.halted) as clients, ThreadPoolExecutor(len(clients)) as pool:
        schedule.begin()
        workers = [pool.submit(_work, client, log, schedule, tally) for client in clients]
        try:
            while wait(workers, timeout=_TICK).not_done:
                if stop is not None and stop.is_set():
                    schedule.halted.set()
                if on_progress is not None:
                    on_progress(tally.done, len(log))
        finally:
            schedule.halted.set()
        seconds = schedule.now()
    for worker in workers:
        _raise_error_of(worker, tally)
    if on_progress is not None:
        on_progress(tally.done, len(log))
    return tally.result(schedule, seconds)


def _work(client: "KVClient", log: AccessLog, schedule: Schedule, tally: "_Tally") -> None:
    """Send requests until none is left. Each client runs this function in its own thread."""
    from . import kv_client  # noqa: PLC0415

    run = secrets.token_hex(4)
    try:
        while (number := schedule.next_request()) is not None:
            request = kv_client.Request(
                id=f"replay-{run}-{number}",
                model=int(log.models[number]),
                salt=log.tenant_names[log.tenants[number]],
                chunk_ids=log.request(number),
                tokens=int(log.tokens[number]),
            )
            tally.record(number, client.request(request))
            schedule.ended(number)
    except kv_client.Stopped:
        pass
    except BaseException:
        schedule.halted.set()
        raise


class _Tally:
    """The outcome of each request. Every thread writes only to the requests that it runs."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log
        self._hits = np.full(len(log), _NOT_RUN, dtype=np.int32)
        self._sent, self._corrupt = np.zeros(len(log), dtype=np.int64), np.zeros(len(log), dtype=np.int64)
        self._lost, self._refused = np.zeros(len(log), dtype=np.bool_), np.zeros(len(log), dtype=np.bool_)

    @property
    def done(self) -> int:
        return int((self._hits != _NOT_RUN).sum())

    def record(self, request: int, outcome: "Outcome") -> None:
        self._sent[request], self._corrupt[request] = outcome.sent, outcome.corrupt
        self._lost[request], self._refused[request] = outcome.lost, outcome.refused
        self._hits[request] = outcome.hit

    def progress(self) -> str:
        """Return the progress of the replay, in words."""
        ran = self._hits != _NOT_RUN
        chunks = self._log.chunks_per_request[ran].sum()
        return (
            f"{ran.sum():,} of {len(self._log):,} requests were done, and {self._hits[ran].sum():,} of their {chunks:,} chunks"
            " were found"
        )

    def result(self, schedule: Schedule, seconds: float) -> ReplayResult:
        ran = self._hits != _NOT_RUN
        return ReplayResult(
            chunk_size=self._log.chunk_size,
            hits=self._hits,
            started=np.where(ran, schedule.started, np.nan),
            requests=int(ran.sum()),
            skipped=int((~ran).sum()),
            tokens=int(self._log.tokens[ran].sum()),
            requested_chunks=int(self._log.chunks_per_request[ran].sum()),
            hit_chunks=int(self._hits[ran].sum()),
            sent_chunks=int(self._sent.sum()),
            corrupt_chunks=int(self._corrupt.sum()),
            failed_retrieves=int(self._lost.sum()),
            refused_stores=int(self._refused.sum()),
            seconds=seconds,
            lag_seconds=schedule.lag_seconds,
        )


def _raise_error_of(worker: Future[None], tally: _Tally) -> None:
    """Raise what ended a worker, with the progress of the replay."""
    try:
        worker.result()
    except CacheDiedError as error:
        msg = f"{error}; {tally.progress()}"
        raise CacheDiedError(msg) from error


@contextmanager
def _clients(log: AccessLog, rpc_url: str, settings: ReplaySettings, stopped: threading.Event) -> "Iterator[list[KVClient]]":
    """Provide the clients, registered with the server until the block ends."""
    salts = [salt for salt in log.tenant_names if len(salt) > _SALT_LENGTH or set(salt) & _NOT_IN_SALTS]
    if salts:
        msg = f"tenant {plain(salts[0])!r} cannot be a cache salt: at most {_SALT_LENGTH} characters, none of @ / \\ and NUL"
        raise WorkloadError(msg)
    kv_client = _kv_client()
    engines = tuple(_engine(kv_client, name or settings.model, settings) for name in log.model_names)
    ranks = sum(engine.world_size for engine in engines)
    first_id = secrets.randbelow(2**30)  # an earlier replay's id would keep that replay's KV layout
    with ExitStack() as stack:
        connection = kv_client.Connection(rpc_url, settings.timeout_seconds, stopped)
        stack.callback(connection.close)
        clients = []
        for number in range(settings.clients):
            clients.append(kv_client.KVClient(connection, first_id + number * ranks, engines))
            stack.callback(clients[-1].close)
        if clients[0].chunk_size != log.chunk_size:
            msg = (
                f"the log has chunks of {log.chunk_size} tokens, but the server at {rpc_url} has chunks of"
                f" {clients[0].chunk_size} tokens; start the server with --chunk-size {log.chunk_size}"
            )
            raise WorkloadError(msg)
        yield clients


def _engine(kv_client: ModuleType, model: str, settings: ReplaySettings) -> "Engine":
    """Return how the engine of one model stores its KV."""
    how = settings.models.get(model, ReplayedModel())
    size = how.kv_bytes_per_token or settings.kv_bytes_per_token
    if size % (4 * how.world_size):
        msg = f"{size} KV bytes per token cannot be divided among {how.world_size} ranks of {plain(model)}: give 4 for each rank"
        raise WorkloadError(msg)
    engine: Engine = kv_client.Engine(how.name or model, how.world_size, size, how.retrieves)
    return engine


def _kv_client() -> ModuleType:
    """Return the module that speaks LMCache's protocol. It is imported when first needed: lmcache and torch take seconds.

    Raises:
        UnsupportedError: lmcache is not installed.
    """
    try:
        with importing_lmcache():
            from . import kv_client  # noqa: PLC0415
    except ImportError as error:
        msg = f"a replay needs LMCache's own client ({error}); {installing('embedded')}"
        raise UnsupportedError(msg) from error
    return kv_client
