"""Which chunks LMCache's LRU would evict first, by the access log."""

import numpy as np

from agent_tools.workload.access_log import AccessLog


def coldest_first(log: AccessLog) -> list[tuple[str, str]]:
    """(model, chunk hash in hexadecimal) of every chunk of a log, in LMCache's order of eviction.

    That is by last request, and within a request the later chunks first: LMCache touches a request's chunks tail first.
    """
    if log.hashes is None:
        return []
    request = np.repeat(np.arange(len(log)), log.chunks_per_request)
    position = np.arange(len(log.chunk_ids)) - log.offsets[request]
    last_request = np.zeros(log.unique_chunks, dtype=np.int64)
    last_position = np.zeros(log.unique_chunks, dtype=np.int64)
    # Later requests come later in the arrays, and the last assignment to an index stays.
    last_request[log.chunk_ids] = request
    last_position[log.chunk_ids] = position
    order = np.lexsort((-last_position, last_request))
    return [(log.model_names[log.models[last_request[chunk]]], log.hashes[chunk].tobytes().hex()) for chunk in order]
