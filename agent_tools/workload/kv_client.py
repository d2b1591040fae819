"""The engine's side of LMCache's request protocol: real KV tensors into and out of a real ``lmcache server``.

As in LMCache 0.5.6, it does for a prompt what vLLM's connector does: lookup, retrieve of the hit prefix, store of the rest, end
of session. The KV of every chunk is made from its chunk id. Importing this module imports lmcache and torch.
"""

import io
import pickle
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch
import zmq
from lmcache.v1.multiprocess.custom_types import (
    IPCCacheServerKey,
    PrepareRetrieveResponse,
    RegisterEngineDrivenContextPayload,
    RegisterEngineDrivenContextResponse,
)
from lmcache.v1.multiprocess.transport.zmq_impl.client import ZmqMultiprocessClient
from lmcache.v1.multiprocess.transport.zmq_impl.mq import MessageQueueClient

from agent_tools.errors import CacheDiedError, NotLMCacheError, UnreachableError, UnsupportedError

from .tokens import marks, prompt

_Answer_co = TypeVar("_Answer_co", covariant=True)

_PATIENCE = 0.5
"""Seconds without an answer after which the client checks that the server still listens."""
_CONNECT_SECONDS = 5
_HIDDEN_BYTES = 4
"""Bytes of K and V of one hidden element in float16."""


@dataclass(frozen=True)
class Engine:
    """One model as an engine of some ranks serves it."""

    model: str
    """The model's name."""
    world_size: int
    """KV ranks."""
    kv_bytes_per_token: int
    """KV of a token over all ranks, bytes."""
    retrieves: bool = True
    """Whether the engine loads what a lookup found."""

    @property
    def hidden(self) -> int:
        """Return the hidden elements of one rank."""
        return self.kv_bytes_per_token // self.world_size // _HIDDEN_BYTES


@dataclass(frozen=True)
class Request:
    """One prompt of an access log."""

    id: str
    model: int
    """Index into the client's models."""
    salt: str
    """The tenant's cache salt."""
    chunk_ids: npt.NDArray[np.int32]
    tokens: int
    """Length of the prompt in tokens, including all chunks."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request."""

    hit: int
    """Number of chunks found."""
    sent: int
    """Number of chunks sent to the server to be stored."""
    corrupt: int
    """Number of chunks that came back with other bytes than were stored under that chunk id, on the worst rank."""
    lost: bool
    """Whether the lookup found chunks that could not be retrieved afterwards."""
    refused: bool
    """Whether the server refused the store."""


class _Future(Protocol[_Answer_co]):
    """LMCache's `MessagingFuture`."""

    def wait(self, timeout: float) -> bool: ...

    def result(self, timeout: float) -> _Answer_co: ...


class Stopped(Exception):  # noqa: N818
    """Raised when the replay is stopped while a call waits for a server that does not answer."""


class Connection:
    """The connection to one server: its RPC address, how long to wait for it, and whether to give up."""

    def __init__(self, rpc_url: str, timeout: float, stopped: threading.Event) -> None:
        """Check that something listens at ``tcp://host:port``. `timeout` applies to each call, in seconds.

        Raises:
            UnreachableError: Nothing listens there.
        """
        self.url, self.timeout = rpc_url, timeout
        self.given_up = False
        """True if no call waits for an answer any more."""
        self._stopped = stopped
        self._address = _address(rpc_url)
        if not self.listens():
            msg = f"nothing listens at {rpc_url}; start `lmcache server` there, or give its RPC address (--host, --port)"
            raise UnreachableError(msg)
        self.context = zmq.Context()  # type: ignore[attr-defined]
        self.context.linger = 0  # otherwise closing waits until a dead server has taken what is queued for it

    def listens(self) -> bool:
        """Return whether the server's port still accepts connections."""
        try:
            socket.create_connection(self._address, timeout=_CONNECT_SECONDS).close()
        except OSError:
            return False
        return True

    def wait(self, future: _Future[_Answer_co], call: str) -> _Answer_co:
        """Wait for the answer to a call and return it.

        Raises:
            CacheDiedError: The server is gone, or did not answer in time.
            Stopped: The server has not answered yet, and the replay is over.
        """
        deadline = time.monotonic() + self.timeout
        while not future.wait(0 if self.given_up else _PATIENCE):
            if self.given_up:
                raise Stopped
            if not self.listens():
                raise self._died(f"is gone: it did not answer {call} and no longer listens; look at its log")
            if time.monotonic() > deadline:
                raise self._died(f"did not answer {call} within {self.timeout:g} s")
            if self._stopped.is_set():
                raise Stopped
        return future.result(0)

    def _died(self, how: str) -> CacheDiedError:
        self.given_up = True
        return CacheDiedError(f"the LMCache server at {self.url} {how}")

    def close(self) -> None:
        """Release the sockets. All clients must be closed before."""
        self.context.term()


class KVClient:
    """The workers of one engine for each model: float16, K and V, one layer, one object group."""

    def __init__(
        self, connection: Connection, instance_id: int, models: tuple[Engine | str, ...], kv_bytes_per_token: int = 128
    ) -> None:
        """Connect, and register every rank of every engine as `instance_id`, `instance_id` + 1, ..

        A name stands for an engine of one rank with `kv_bytes_per_token`.

        Raises:
            NotLMCacheError: Something listens, but it does not speak LMCache's request protocol.
            UnsupportedError: The server does not accept KV from a client without a GPU.
        """
        self._connection = connection
        self._engines = [Engine(one, 1, kv_bytes_per_token) if isinstance(one, str) else one for one in models]
        self._wait = connection.wait
        self._rpc = ZmqMultiprocessClient(MessageQueueClient(connection.url, connection.context))
        self._registered: list[int] = []
        self._instances: list[range] = []
        try:
            self.chunk_size = self._ask_chunk_size()
            for engine in self._engines:
                first = instance_id + len(self._registered)
                self._instances.append(range(first, first + engine.world_size))
                for instance in self._instances[-1]:
                    self._register(instance, engine)
        except BaseException:
            self.close()
            raise

    def request(self, request: Request) -> Outcome:
        """Do for one prompt what an engine does, also if the prompt is shorter than one chunk, like vLLM's connector.

        Raises:
            CacheDiedError: The server is gone or does not answer. The request stays unfinished.
        """
        whole, engine = len(request.chunk_ids), self._engines[request.model]
        lookup = self._key(request)
        self._wait(self._rpc.lookup(lookup, engine.world_size), "lookup")
        hit: int | None = self._wait(self._rpc.wait_prefetch_status(request.id, self._connection.timeout), "wait_prefetch_status")
        if hit is None:
            msg = f"the LMCache server at {self._connection.url} did not finish a lookup within {self._connection.timeout:g} s"
            raise CacheDiedError(msg)
        corrupt, lost, refused = 0, False, False
        ranks = list(enumerate(self._instances[request.model]))
        if hit and not engine.retrieves:
            held = replace(lookup, end=hit * self.chunk_size)
            self._wait(self._rpc.free_lookup_locks(held, engine.world_size), "free_lookup_locks")
        for rank, instance in ranks if hit and engine.retrieves else ():
            found = self._retrieve(replace(lookup, worker_id=rank, end=hit * self.chunk_size), instance)
            expected = _of_rank(marks(request.chunk_ids[:hit]), rank)
            corrupt = max(corrupt, 0 if found is None else _differences(found, expected))
            lost |= found is None
        for rank, instance in ranks if hit < whole else ():
            rest = replace(lookup, worker_id=rank, start=hit * self.chunk_size)
            refused |= not self._store(rest, instance, engine.hidden, _of_rank(marks(request.chunk_ids[hit:]), rank))
        self._wait(self._rpc.end_session(request.id), "end_session")
        return Outcome(hit=hit, sent=0 if refused else whole - hit, corrupt=corrupt, lost=lost, refused=refused)

    def close(self) -> None:
        """Unregister, unless the server is gone, and release the socket."""
        try:
            for instance in self._registered:
                self._wait(self._rpc.unregister_kv_cache_engine_driven_context(instance), "unregister")
        except (CacheDiedError, Stopped):
            self._connection.given_up = True  # nothing is left to answer, also for the other clients
        finally:
            self._rpc.close()

    def _ask_chunk_size(self) -> int:
        try:
            return int(self._wait(self._rpc.get_chunk_size(), "get_chunk_size"))
        except CacheDiedError as error:
            msg = f"{self._connection.url} is not the RPC address (--port, not --http-port) of an `lmcache server`: {error}"
            raise NotLMCacheError(msg) from error

    def _register(self, instance_id: int, engine: Engine) -> None:
        payload = RegisterEngineDrivenContextPayload(
            instance_id=instance_id,
            model_name=engine.model,
            world_size=engine.world_size,
            block_size=self.chunk_size,
            num_layers=1,
            hidden_dim_size=engine.hidden,
            dtype_str="float16",
            use_mla=False,
            num_physical_slots=self.chunk_size,
        )
        try:
            answer: RegisterEngineDrivenContextResponse = self._wait(
                self._rpc.register_kv_cache_engine_driven_context(payload), "register"
            )
        except CacheDiedError as error:  # 0.5.6 never answers a call that it has no handler for
            msg = f"{error}; for a replay, start the server with --supported-transfer-mode auto (or engine_driven)"
            raise UnsupportedError(msg) from error
        self._registered.append(instance_id)
        if answer.shm_name:
            msg = f"{self._connection.url} passes KV through shared memory; for a replay, start it with --shm-name ''"
            raise UnsupportedError(msg)

    def _key(self, request: Request) -> IPCCacheServerKey:
        engine = self._engines[request.model]
        return IPCCacheServerKey(
            model_name=engine.model,
            world_size=engine.world_size,
            worker_id=None,
            token_ids=prompt(request.chunk_ids, request.tokens, self.chunk_size),
            start=0,
            end=len(request.chunk_ids) * self.chunk_size,
            request_id=request.id,
            cache_salt=request.salt,
            num_kv_readers=1,
        )

    def _retrieve(self, key: IPCCacheServerKey, instance: int) -> list[npt.NDArray[np.uint32]] | None:
        """Return the KV of a key's range, one array of 32-bit words per chunk; ``None`` if the server no longer has it."""
        answer: PrepareRetrieveResponse = self._wait(self._rpc.prepare_retrieve(key, instance), "prepare_retrieve")
        self._wait(self._rpc.commit_retrieve(key, instance), "commit_retrieve")
        return _Loader(io.BytesIO(answer.data)).load() if answer.success else None

    def _store(self, key: IPCCacheServerKey, instance: int, hidden: int, filled: npt.NDArray[np.uint32]) -> bool:
        """Send one rank's KV of some chunks, each filled with its mark. Return whether the server accepted it.

        The server also accepts a store that it drops because L1 is full.
        """
        words = np.repeat(filled, self.chunk_size * hidden).reshape(len(filled), -1)
        chunks = [torch.from_numpy(row.view(np.float16).reshape(2, 1, self.chunk_size, hidden)) for row in words]
        self._wait(self._rpc.prepare_store(key, instance), "prepare_store")
        return bool(self._wait(self._rpc.commit_store(key, instance, _pickled(chunks)), "commit_store"))


def _address(rpc_url: str) -> tuple[str, int]:
    parts = urlsplit(rpc_url if "://" in rpc_url else f"tcp://{rpc_url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != "tcp" or not host or not port:
        msg = f"{rpc_url!r} is not the RPC address of an `lmcache server`; give one like tcp://127.0.0.1:5555"
        raise UnreachableError(msg)
    return host, port


def _of_rank(of_chunk: npt.NDArray[np.uint32], rank: int) -> npt.NDArray[np.uint32]:
    """Return the marks of one rank's part of each chunk; different for each rank, and never zero."""
    return of_chunk * np.uint32(2 * rank + 1)  # odd, so no two chunks become equal


def _differences(chunks: list[npt.NDArray[np.uint32]], expected: npt.NDArray[np.uint32]) -> int:
    """Return the number of chunks that are missing, or whose first word (of K) or last word (of V) is not their mark."""
    pairs = zip(chunks, expected.tolist(), strict=False)
    return len(expected) - sum(bool(chunk[0] == mark and chunk[-1] == mark) for chunk, mark in pairs)


def _pickled(chunks: list[torch.Tensor]) -> bytes:
    """Return a pickle that gives the server a list of tensors.

    The tensors travel as NumPy arrays: 6 us a chunk here and 3 us there, instead of torch's 63 and 58.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {torch.Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}
    pickler.dump(chunks)
    return buffer.getvalue()


class _Loader(pickle.Unpickler):
    """Reads a pickled list of tensors. Unlike `pickle.loads`, it runs nothing that the pickle names."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _READERS:
            msg = f"the server sent a pickle that names {module}.{name}, which no list of tensors needs; check what listens there"
            raise NotLMCacheError(msg)
        return _READERS[module, name]


def _words(storage: bytes, _offset: int, shape: tuple[int, ...], *_: object) -> npt.NDArray[np.uint32]:
    """Return a float16 tensor's words.

    torch writes a storage as a header and then its bytes. The server sends one storage per chunk.
    """
    return np.frombuffer(storage[-2 * int(np.prod(shape)) :], dtype=np.uint32)


_READERS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _words,
    ("torch.storage", "_load_from_bytes"): bytes,
    ("collections", "OrderedDict"): OrderedDict,
}
