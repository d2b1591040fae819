"""What a replay does not do: lookups without a store, ranks that store nothing, and an engine with another connector."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from agent_tools.workload.replay import _kv_client

RECORDED_PAGE = Path(__file__).parents[2] / "tests" / "serving_engine" / "vllm_0_32_0.txt"
"""The metrics of a real vLLM 0.32.0."""


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


class DecoderPage:
    """The metrics of the decoder of a prefill-decode pair, which loads what the prefiller computed over another connector.

    It stands in for a vLLM with two connectors, for which this bench has no GPUs: a recorded page, whose counters of prompt
    tokens and of tokens loaded from outside grow with time.
    """

    def __init__(self, tokens_per_second: float) -> None:
        self._rate, self._began = tokens_per_second, time.time()
        self._page = RECORDED_PAGE.read_text()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await PlainTextResponse(self.page())(scope, receive, send)

    def page(self) -> str:
        """Return the page as it is now."""
        tokens = int((time.time() - self._began) * self._rate)
        grown = {
            "process_start_time_seconds": self._began,
            "vllm:external_prefix_cache_hits_total": tokens,
            "vllm:request_prompt_tokens_count": tokens // 6000,
            "vllm:request_prompt_tokens_sum": tokens * 1.05,
        }
        lines = []
        for line in self._page.splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            lines.append(f"{line.rpartition(' ')[0]} {grown[name]}" if name in grown else line)
        return "\n".join(lines) + "\n"
