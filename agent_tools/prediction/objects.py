"""The objects of a log's chunks in flat arrays, as `object_model` takes them.

LMCache stores a chunk as one object for each object group and KV rank. The objects of chunk c are numbered from ``first[c]`` on,
in the order (group, rank).
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import ChunkLayout, is_uniform, layout_of_requests

Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]

_KNOWN: "WeakKeyDictionary[AccessLog, Objects]" = WeakKeyDictionary()
"""The objects of logs that are still in use, because one search runs hundreds of settings on one log."""


class Objects(NamedTuple):
    """Objects of all chunks of a log. Bytes are those that an object takes in L1."""

    first: npt.NDArray[np.int64]
    """(chunks + 1,) the first object of each chunk; the last entry is the number of objects."""
    bytes: Float64
    """(objects,) bytes of each object."""
    share: Float64
    """(objects,) the part of its chunk that each object is: 1 / objects of the chunk."""
    ranks: Int32
    """(models,) KV ranks of each model."""
    groups: Int32
    """(models,) object groups of each model."""
    windows: Int32
    """(models, most groups) chunks that a hit needs of each object group; -1: all."""
    most: int
    """Objects of the largest request."""
    chunk_bytes: float
    """Bytes of one chunk of the log's unit: capacities in chunks are in chunks of this size."""


def needs_objects(log: AccessLog) -> bool:
    """Return whether the log's chunks have more than one object, or differ in bytes."""
    return not is_uniform(log)


def objects_of(log: AccessLog) -> Objects:
    """Return the objects of a log with layouts, whose chunk ids differ wherever the model differs (see `isolated`)."""
    known = _KNOWN.get(log)
    if known is None:
        known = _KNOWN[log] = _objects_of(log)
    return known


def _objects_of(log: AccessLog) -> Objects:
    layouts = layout_of_requests(log)
    model_of_chunk = np.zeros(log.unique_chunks, np.int64)
    model_of_chunk[log.chunk_ids] = np.repeat(log.models, log.chunks_per_request)
    counts = np.array([layout.objects for layout in layouts], np.int64)
    per_chunk = counts[model_of_chunk]
    first = np.concatenate((np.zeros(1, np.int64), np.cumsum(per_chunk)))
    begins = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    sizes = np.concatenate([_bytes(layout) for layout in layouts])
    within = np.arange(first[-1]) - np.repeat(first[:-1], per_chunk)
    windows = np.full((len(layouts), max(len(layout.groups) for layout in layouts)), -1, np.int32)
    for label, layout in enumerate(layouts):
        windows[label, : len(layout.groups)] = [group.window for group in layout.groups]
    return Objects(
        first=first,
        bytes=sizes[np.repeat(begins[model_of_chunk], per_chunk) + within],
        share=1.0 / np.repeat(per_chunk, per_chunk),
        ranks=np.array([layout.world_size or 1 for layout in layouts], np.int32),
        groups=np.array([len(layout.groups) for layout in layouts], np.int32),
        windows=windows,
        most=int((log.chunks_per_request * counts[log.models]).max(initial=1)),
        chunk_bytes=float(log.chunk_bytes or 1),
    )


def _bytes(layout: ChunkLayout) -> Float64:
    """Return (objects of a chunk,) the bytes of each object, in the order (group, rank)."""
    return np.repeat(np.array([group.allocated for group in layout.groups], np.float64), layout.world_size or 1)
