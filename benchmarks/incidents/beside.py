"""What a replay does not do: lookups without a store, and ranks that store nothing."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from agent_tools.workload.replay import _kv_client


def look_up_only(rpc_url: str, model: str, world_size: int, prompts: Sequence[tuple[Any, int]]) -> int:
    """Look up prompts as an engine of this world size that registers and stores nothing; return the number of chunks found.

    Args:
        rpc_url: Address of the server for engines.
        model: Name of the model.
        world_size: World size that is asked for.
        prompts: Chunk ids of each prompt, and the tokens of a chunk.
    """
    kv_client, found = _kv_client(), 0
    connection = kv_client.Connection(rpc_url, 20, threading.Event())
    engine = kv_client.KVClient(connection, 78, ())
    try:
        for number, (chunks, size) in enumerate(prompts):
            chunk_ids, tokens = np.asarray(chunks, np.int32), len(chunks) * size
            key = kv_client.IPCCacheServerKey(
                model_name=model,
                world_size=world_size,
                worker_id=None,
                token_ids=kv_client.prompt(chunk_ids, tokens, size),
                start=0,
                end=tokens,
                request_id=f"only-looked-up-{model}-{world_size}-{number}",
                cache_salt="",
                num_kv_readers=1,
            )
            rpc = engine._rpc  # noqa: SLF001
            connection.wait(rpc.lookup(key, world_size), "lookup")
            found += connection.wait(rpc.wait_prefetch_status(key.request_id, 10), "wait_prefetch_status") or 0
            connection.wait(rpc.end_session(key.request_id), "end_session")
    finally:
        engine.close()
        connection.close()
    return found


@contextmanager
def last_ranks_store_nothing(ranks: int) -> Iterator[None]:
    """Let the last `ranks` workers of each engine in this process keep their KV, as workers that hang do."""
    client = _kv_client().KVClient
    store = client._store  # noqa: SLF001

    def of_the_others(self: Any, key: Any, *rest: Any) -> bool:  # noqa: ANN401
        return bool(key.worker_id >= key.world_size - ranks or store(self, key, *rest))

    with mock.patch.object(client, "_store", of_the_others):
        yield
