"""An engine of any number of KV ranks that is registered with a real server, prompt by prompt."""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from real_logs import log_of

from agent_tools.deployments.server.process import ServerProcess
from agent_tools.workload.replay import _kv_client

CHUNKS = 6
"""Chunks of each prompt."""
BYTES = 64
"""KV bytes of a token, over all ranks: 16 KiB a chunk of 256 tokens."""


@contextmanager
def engine(process: ServerProcess, model: str, ranks: int, *, retrieves: bool = True) -> Iterator[Callable[..., int]]:
    """Register an engine. It yields a function that sends a prompt of numbered chunks and returns the chunks found."""
    kv_client = _kv_client()
    connection = kv_client.Connection(process.rpc_url, 60, threading.Event())
    one = kv_client.Engine(model, ranks, BYTES, retrieves)
    client = kv_client.KVClient(connection, secrets.randbelow(2**30), (one,))

    def ask(first: int, *, stored_by: int = ranks) -> int:
        log = log_of(range(first, first + CHUNKS))
        known = client._instances[0]
        client._instances[0] = known[:stored_by]
        try:
            return client.request(kv_client.Request(secrets.token_hex(4), 0, "", log.request(0) + first, int(log.tokens[0]))).hit
        finally:
            client._instances[0] = known

    try:
        yield ask
    finally:
        client.close()
        connection.close()
