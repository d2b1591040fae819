"""Chunks of unequal size as whole steps of capacity, so that exact curves count bytes."""

from math import gcd

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import layout_of_requests

MOST_STEPS = 64
"""Steps in an average chunk, unless the sizes have a larger common divisor. Finer sizes are rounded."""

Int32 = npt.NDArray[np.int32]


def chunk_steps(log: AccessLog) -> tuple[Int32 | None, float]:
    """Return the size of each request's chunks in steps, and the steps in one chunk of the log's average size.

    Returns:
        (requests,) steps, and steps per chunk; ``(None, 1.0)`` if all chunks of the log are equally large.
    """
    if not log.layouts or not log.chunk_bytes:
        return None, 1.0
    sizes = [layout.bytes for layout in layout_of_requests(log)]
    present = [sizes[label] for label in np.unique(log.models)]
    if all(size == log.chunk_bytes for size in present):
        return None, 1.0
    unit = max(float(gcd(*present)), log.chunk_bytes / MOST_STEPS)
    steps = np.array([max(round(size / unit), 1) for size in sizes], np.int32)
    return steps[log.models], log.chunk_bytes / unit


def footprint(log: AccessLog) -> int:
    """Return the size of all distinct chunks of an isolated log, in chunks of its average size, rounded up."""
    steps, per_chunk = chunk_steps(log)
    if steps is None:
        return log.unique_chunks
    of_chunk = np.zeros(log.unique_chunks, np.int64)
    of_chunk[log.chunk_ids] = np.repeat(steps, log.chunks_per_request)
    return int(np.ceil(of_chunk.sum() / per_chunk - 1e-6))
