"""Find from the access log which chunks LMCache's LRU would evict first."""

import numpy as np

from agent_tools.workload.access_log import AccessLog


def coldest_first(log: AccessLog) -> list[tuple[str, str]]:
    """Return the model and the hexadecimal hash of every chunk of a log, in LMCache's order of eviction.

    The order is by last request, and within a request from the last chunk to the first, because LMCache touches a request's
    chunks from the tail.
    """
    if log.hashes is None:
        return []
    request = np.repeat(np.arange(len(log)), log.chunks_per_request)
    position = np.arange(len(log.chunk_ids)) - log.offsets[request]
    last_request = np.zeros(log.unique_chunks, dtype=np.int64)
    last_position = np.zeros(log.unique_chunks, dtype=np.int64)
    # Later requests come later in the arrays, and NumPy keeps the last assignment to an index.
    last_request[log.chunk_ids] = request
    last_position[log.chunk_ids] = position
    order = np.lexsort((-last_position, last_request))
    layouts = log.layouts or (None,) * len(log.model_names)
    names = [name if layout is None else layout.model for name, layout in zip(log.model_names, layouts, strict=True)]
    return [(names[log.models[last_request[chunk]]], log.hashes[chunk].tobytes().hex()) for chunk in order]
