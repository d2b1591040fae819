"""A real `LMCacheEngine`, as a worker of vLLM would hold one, with real KV tensors but no model. A script of its own.

    python engine_script.py '{"port": 7001, "role": "worker", "worker_id": 0, "world_size": 1, "config": {}}'

With ``enable_chunk_statistics`` in its config, LMCache's own recorder writes each lookup, as vLLM's scheduler would have it do.
It takes one JSON list of prompts a line, each ``[seed, chunks]`` or ``[seed, chunks, tokens behind them]``, looks each up,
retrieves what is found, stores the rest, and answers with one line: how many tokens of each were found, or what went wrong. It
ends when its standard input closes.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from lmcache.utils import mock_up_broadcast_fn, mock_up_broadcast_object_fn
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.gpu_connector.mock_gpu_connector import MockGPUConnector
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.standalone.manager import StandaloneLMCacheManager

CHUNK, HEADS, HEAD_SIZE = 64, 2, 64
SERVED: list[int] = []
"""The seeds of the recorded prompts."""
KV_SHAPE = (1, 2, CHUNK, HEADS, HEAD_SIZE)


class KVInMemory(MockGPUConnector):  # type: ignore[misc]
    """Stands where a model's paged KV memory would: `kv` holds the prompt's tensors, tokens in the second dimension."""

    def batched_from_gpu(self, memory_objs: Any, starts: Any, ends: Any, *, kv: Any, **_: Any) -> None:
        for chunk, start, end in zip(memory_objs, starts, ends, strict=True):
            chunk.tensor.view(2, end - start, -1).copy_(kv[:, start:end])

    def batched_to_gpu(self, memory_objs: Any, starts: Any, ends: Any, *, kv: Any, **_: Any) -> None:
        for chunk, start, end in zip(memory_objs, starts, ends, strict=True):
            kv[:, start:end] = chunk.tensor.view(2, end - start, -1)


def started(port: int, role: str, worker_id: int, world_size: int, config: dict[str, Any]) -> StandaloneLMCacheManager:
    """An engine whose internal API answers, with an L1 of 2 MiB unless `config` says otherwise."""
    settings = {
        "chunk_size": CHUNK,
        "local_cpu": True,
        "max_local_cpu_size": 2 / 1024,
        "lmcache_instance_id": "engine",
        "pre_caching_hash_algorithm": "sha256_cbor",
        "internal_api_server_enabled": True,
        "internal_api_server_host": "127.0.0.1",
        "internal_api_server_port_start": port - 1 - worker_id,
    }
    metadata = LMCacheMetadata(
        model_name="toy",
        world_size=world_size,
        local_world_size=world_size,
        worker_id=worker_id,
        local_worker_id=worker_id,
        kv_dtype=torch.float16,
        kv_shape=KV_SHAPE,
        role=role,
        chunk_size=CHUNK,
    )
    manager = StandaloneLMCacheManager(
        LMCacheEngineConfig.from_defaults(**settings | config),
        metadata,
        KVInMemory(KV_SHAPE),
        mock_up_broadcast_fn,
        mock_up_broadcast_object_fn,
    )
    manager.post_init()
    manager.start_services()
    while not manager.api_server.server.started:
        if not any(thread.name == "api-server-thread" for thread in threading.enumerate()):
            sys.exit("the internal API could not be started, see above: its port may be taken")
        time.sleep(0.01)
    return manager


def recorder_of(engine: Any) -> Any:
    """LMCache's own recorder of lookups, or ``None`` if the configuration asks for none."""
    if not engine.config.enable_chunk_statistics:
        return None
    from lmcache.v1.lookup_client.record_strategies import AsyncRecorder, create_record_strategy  # noqa: PLC0415

    return AsyncRecorder(create_record_strategy(engine.config))


def serve(engine: Any, recorder: Any, seed: int, chunks: int, tail: int = 0) -> int:
    """One request: the prompt is made from `seed`; returns how many of its tokens were found."""
    prompt = torch.randint(50_000, (chunks * CHUNK + tail,), generator=torch.Generator().manual_seed(seed))
    if recorder is not None:
        SERVED.append(seed)
        recorder.record_async(prompt.tolist(), f"request-{len(SERVED)}")
        recorder.wait_for_completion()
    tokens = prompt[: chunks * CHUNK]  # only whole chunks are stored
    kv = tokens.half().view(1, -1, 1).expand(2, -1, HEADS * HEAD_SIZE).contiguous()  # tells which token it is of
    found = int(engine.lookup(tokens=tokens.tolist(), lookup_id="one", pin=True))
    if found:
        got = torch.zeros_like(kv[:, :found])
        came = engine.retrieve(tokens[:found], kv=got)  # fewer than were found, if a tier is taken away in between
        assert torch.equal(got[:, came], kv[:, :found][:, came]), "the KV that came back is not what was stored"
    engine.lookup_unpin("one")
    if found < len(tokens):
        engine.store(tokens, mask=torch.arange(len(tokens)) >= found, kv=kv)
    return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what LMCache prints is no answer
    manager = started(**json.loads(sys.argv[1]))
    recorder = recorder_of(manager.lmcache_engine)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer: Sequence[int] | str = [serve(manager.lmcache_engine, recorder, *prompt) for prompt in json.loads(line)]
        except Exception as error:  # noqa: BLE001  whatever it is, the test is to see it
            answer = repr(error)
        print(json.dumps(answer), file=answers, flush=True)
    manager.stop_services()


if __name__ == "__main__":
    main()
