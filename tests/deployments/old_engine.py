"""The engine's side of the request protocol of LMCache 0.4.7 to 0.5.3; a script that runs where that version is installed.

    python old_engine.py tcp://127.0.0.1:PORT PROMPTS [SECONDS]

It asks for PROMPTS prompts of ten chunks, each twice in a row, with a pause of SECONDS between them, and prints as JSON what the
server answered: the chunks found and asked for. Our own client speaks the protocol of 0.5.4 and later.
"""

import io
import json
import pickle
import sys
import time

import torch
import zmq
from lmcache.v1.multiprocess import custom_types
from lmcache.v1.multiprocess.mq import MessageQueueClient
from lmcache.v1.multiprocess.protocol import RequestType

CHUNKS, HIDDEN, INSTANCE, PATIENCE = 10, 32, 7000, 20.0


def main(url: str, prompts: int, pause: float) -> None:
    """Send the requests and print the outcome."""
    context = zmq.Context()
    client = MessageQueueClient(url, context)

    def call(name: str, *payloads: object) -> object:
        return client.submit_request(getattr(RequestType, name), list(payloads), None).result(timeout=PATIENCE)

    chunk = int(call("GET_CHUNK_SIZE"))
    kind = "NON_GPU" if hasattr(RequestType, "REGISTER_KV_CACHE_NON_GPU_CONTEXT") else "ENGINE_DRIVEN"
    payload = getattr(custom_types, f"Register{'NonGpu' if kind == 'NON_GPU' else 'EngineDriven'}ContextPayload")
    key_type = getattr(custom_types, "IPCCacheServerKey", None) or custom_types.IPCCacheEngineKey
    fields = {
        "instance_id": INSTANCE, "model_name": "toy/m", "world_size": 1, "block_size": chunk, "num_layers": 1,
        "hidden_dim_size": HIDDEN, "dtype_str": "float16", "use_mla": False, "num_physical_slots": chunk,
    }  # fmt: skip
    call(f"REGISTER_KV_CACHE_{kind}_CONTEXT", payload(**{k: v for k, v in fields.items() if k in payload.__struct_fields__}))
    kv = torch.ones((2, 1, chunk, HIDDEN), dtype=torch.float16)
    found = 0
    for number in range(2 * prompts):
        tokens = tuple(range(1000 * (number // 2), 1000 * (number // 2) + CHUNKS * chunk))
        name = f"request-{number}"

        def key(start: int, end: int, worker: "int | None", tokens: tuple = tokens, name: str = name) -> object:
            return key_type(
                model_name="toy/m", world_size=1, worker_id=worker, token_ids=tokens, start=start, end=end, request_id=name
            )

        call("LOOKUP", key(0, CHUNKS * chunk, None), 1)
        deadline = time.monotonic() + PATIENCE
        while (hit := call("QUERY_PREFETCH_STATUS", name)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        hit = int(hit or 0)
        found += hit
        if hit:
            call("PREPARE_RETRIEVE", key(0, hit * chunk, 0), INSTANCE)
            call("COMMIT_RETRIEVE", key(0, hit * chunk, 0), INSTANCE)
        if hit < CHUNKS:
            buffer = io.BytesIO()
            pickle.dump([kv] * (CHUNKS - hit), buffer)
            call("PREPARE_STORE", key(hit * chunk, CHUNKS * chunk, 0), INSTANCE)
            call("COMMIT_STORE", key(hit * chunk, CHUNKS * chunk, 0), INSTANCE, buffer.getvalue())
        call("END_SESSION", name)
        time.sleep(pause)
    print(json.dumps({"asked": 2 * prompts * CHUNKS, "found": found}))  # noqa: T201
    client.close()
    context.term()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float((sys.argv[3:] or ["0"])[0]))
