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
from agent_tools.lmcache_import import importing_lmcache

from .access_log import AccessLog
from .schedule import ReplaySettings, Schedule

if TYPE_CHECKING:
    from .kv_client import KVClient, Outcome

Progress = Callable[[int, int], None]
"""Called with the requests done and the requests in all, from the thread that called `replay`."""

_TICK = 0.1
"""Seconds between two looks at the stop event and two reports of progress."""
_NOT_RUN = -1
_SALT_LENGTH, _NOT_IN_SALTS = 128, frozenset("@/\\\0")
"""What LMCache 0.5.6 accepts as a cache salt (`IPCCacheServerKey`)."""


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """What the client saw; what was really kept, dropped and evicted is in the server's own counters."""

    chunk_size: int
    """Tokens per chunk."""
    hits: npt.NDArray[np.int32]
    """(requests,) chunks found for each request of the log; -1 where it was not run."""
    started: npt.NDArray[np.float64]
    """(requests,) when each request started, seconds from the start of the replay; NaN where it was not run."""
    requests: int
    """Requests run."""
    skipped: int
    """Requests not run, because of the time limit or a stop."""
    tokens: int
    """Prompt tokens of the requests run."""
    requested_chunks: int
    """Whole chunks of the requests run."""
    hit_chunks: int
    """Of these, found in the cache."""
    sent_chunks: int
    """Chunks handed over to be stored. LMCache 0.5.6 also accepts, and drops, a store that finds no room."""
    corrupt_chunks: int
    """Chunks that came back with the KV of another chunk, or damaged."""
    failed_retrieves: int
    """Requests whose found chunks could then not be retrieved."""
    refused_stores: int
    """Requests whose store the server refused."""
    seconds: float
    """From the first request to the last answer."""
    lag_seconds: float
    """Longest time a request started after its moment, when a pace was set; a large one means the pace was too fast."""

    @property
    def hit_rate(self) -> float | None:
        """Share of the requested chunks that were found; ``None`` when none was requested."""
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

    Each tenant's name is its cache salt. Requests start in the log's order, and none starts before the request that first
    had its longest known prefix has ended: an agent's next turn waits for the turn before. With one client the order is that
    of the log exactly. When `stop` is set, or the call is interrupted, no further request starts, those under way end, and
    the clients unregister.

    Raises:
        UnreachableError: nothing listens there; nothing was sent.
        NotLMCacheError: something else than LMCache's request protocol answers there; nothing was sent.
        UnsupportedError: lmcache is not installed, or the server takes no KV from such a client; nothing was sent.
        WorkloadError: the log does not suit the server; nothing was sent.
        CacheDiedError: the server went away, or stopped answering, during the replay.
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
    """Send requests until none is left; one of these runs for each client, in its own thread."""
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
    """What became of each request; every thread writes only to the requests it runs."""

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
        """Where the replay stands, in words."""
        ran = self._hits != _NOT_RUN
        chunks = self._log.chunks_per_request[ran].sum()
        return (
            f"{ran.sum():,} of {len(self._log):,} requests were done, with {self._hits[ran].sum():,} of {chunks:,} chunks found"
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
    """Pass on what ended a worker, with how far the replay had come."""
    try:
        worker.result()
    except CacheDiedError as error:
        msg = f"{error}; {tally.progress()}"
        raise CacheDiedError(msg) from error


@contextmanager
def _clients(log: AccessLog, rpc_url: str, settings: ReplaySettings, stopped: threading.Event) -> "Iterator[list[KVClient]]":
    """The clients, registered with the server for as long as the block lasts."""
    models = tuple(name or settings.model for name in log.model_names)
    salts = [salt for salt in log.tenant_names if len(salt) > _SALT_LENGTH or set(salt) & _NOT_IN_SALTS]
    if salts:
        msg = f"tenant {salts[0]!r} cannot be a cache salt: at most {_SALT_LENGTH} characters, none of @ / \\ and NUL"
        raise WorkloadError(msg)
    kv_client, first_id = _kv_client(), secrets.randbelow(2**30)  # an id of an earlier replay would keep that one's KV layout
    with ExitStack() as stack:
        connection = kv_client.Connection(rpc_url, settings.timeout_seconds, stopped)
        stack.callback(connection.close)
        clients = []
        for number in range(settings.clients):
            ids = first_id + number * len(models)
            clients.append(kv_client.KVClient(connection, ids, models, settings.kv_bytes_per_token))
            stack.callback(clients[-1].close)
        if clients[0].chunk_size != log.chunk_size:
            msg = (
                f"the log has chunks of {log.chunk_size} tokens, the server at {rpc_url} of {clients[0].chunk_size}; "
                f"start the server with --chunk-size {log.chunk_size}"
            )
            raise WorkloadError(msg)
        yield clients


def _kv_client() -> ModuleType:
    """The module that speaks LMCache's protocol, imported when it is first needed: lmcache and torch take seconds.

    Raises:
        UnsupportedError: lmcache is not installed.
    """
    try:
        with importing_lmcache():
            from . import kv_client  # noqa: PLC0415
    except ImportError as error:
        msg = f"a replay needs LMCache's own client ({error}); install lmcache-agent-tools[embedded]"
        raise UnsupportedError(msg) from error
    return kv_client
