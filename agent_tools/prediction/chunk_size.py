"""The same log with larger chunks: the log that a multiple of the recorded chunk size would have produced."""

from dataclasses import replace

import numpy as np

from agent_tools.workload.access_log import AccessLog, renumber


def with_larger_chunks(log: AccessLog, factor: int) -> AccessLog:
    """Return the log that a server with ``factor`` times the chunk size would have written.

    The result is exact, because chunk ids stand for whole prefixes: every ``factor``-th chunk of a request identifies the larger
    chunk that ends there. Smaller chunks cannot be derived from a log.

    Raises:
        ValueError: If ``factor`` is below 1.
    """
    if factor < 1:
        raise ValueError(f"chunks can only be made larger: factor must be at least 1, got {factor}")
    counts = log.chunks_per_request // factor
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    nth = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    chunk_ids, kept = renumber(log.chunk_ids[np.repeat(log.offsets[:-1], counts) + nth * factor + factor - 1])
    return replace(
        log,
        chunk_size=log.chunk_size * factor,
        chunk_ids=chunk_ids,
        offsets=offsets,
        hashes=None if log.hashes is None else log.hashes[kept],
        chunk_bytes=None if log.chunk_bytes is None else log.chunk_bytes * factor,
        layouts=tuple(None if layout is None else layout.times(factor) for layout in log.layouts),
    )
