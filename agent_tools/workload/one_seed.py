"""Files, or parts of one file, whose hashes cannot be compared: two processes hashed the same prompts with different seeds.

LMCache's ``builtin`` hash of an in-process engine has another seed in each process unless ``PYTHONHASHSEED`` is set. Then the
same prompt has other hashes after a restart, and the files of the two processes must not be read as one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.errors import WorkloadError

FEWEST = 20
"""A group of files, or a part of one, with fewer chunks than this says nothing about its seed."""
PART = 0.1
"""Least share of the requests in a part of a file that is compared with the others."""


def must_share_a_seed(files: Sequence[Path], ids: npt.NDArray[np.int32], ends: npt.NDArray[np.int64]) -> None:
    """Raise `WorkloadError` if the files fall into groups without a common hash, each of which asks for its own chunks again.

    Args:
        files: The files of one log.
        ids: (chunks,) the chunk ids of all files, one file after the other.
        ends: (files,) where the ids of each file end.
    """
    if len(files) < 2 or not len(ids):
        return
    parts = np.split(ids, ends[:-1])
    unique = [np.unique(part) for part in parts]
    owner = np.full(int(ids.max()) + 1, -1, np.int64)
    group = list(range(len(files)))

    def root(file: int) -> int:
        while group[file] != file:
            group[file] = group[group[file]]
            file = group[file]
        return file

    for file, own in enumerate(unique):
        for other in np.unique(owner[own]):
            if other >= 0:
                group[root(int(other))] = root(file)
        owner[own] = file
    again = [len(part) - len(own) for part, own in zip(parts, unique, strict=True)]
    by_group: dict[int, list[int]] = {}
    for file in range(len(files)):
        by_group.setdefault(root(file), []).append(file)
    telling = [
        members
        for members in by_group.values()
        if sum(again[file] for file in members) and sum(len(unique[file]) for file in members) >= FEWEST
    ]
    if len(telling) > 1:
        names = "; ".join(", ".join(files[file].name for file in members[:3]) for members in telling[:3])
        raise WorkloadError(
            f"the files fall into {len(telling)} groups that have no chunk hash in common ({names}): they are of processes with"
            " different hash seeds (PYTHONHASHSEED was not set) or of different engines, so read one group at a time"
        )


def parts_without_a_common_hash(ids: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return first and last request (from 1) of the parts of a log that repeat their own chunks and none of another part's.

    Return an empty list if there are fewer than two such parts.

    Args:
        ids: (chunks,) the chunk ids of all requests, in the order of the lines.
        counts: (requests,) chunks of each.
    """
    if not len(ids):
        return []
    chunks = np.concatenate(([0], np.cumsum(counts)))
    ends = np.flatnonzero(_is_end(ids, chunks, np.empty(int(ids.max()) + 1, np.int32), np.zeros(len(counts), np.bool_)))
    starts = np.concatenate(([0], ends[:-1] + 1))
    large = (ends - starts + 1) >= PART * len(counts)
    if large.sum() < 2:
        return []
    parts = []
    for start, end in zip(starts[large].tolist(), ends[large].tolist(), strict=True):
        listed = ids[chunks[start] : chunks[end + 1]]
        distinct = len(np.unique(listed))
        if FEWEST <= distinct < len(listed):
            parts.append((start + 1, end + 1))
    return parts if len(parts) > 1 else []


@compiled
def _is_end(
    ids: npt.NDArray[np.int32], chunks: npt.NDArray[np.int64], last: npt.NDArray[np.int32], ends: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Mark in `ends` the requests after which no chunk comes again that came until then. `last` has room for each id."""
    for r in range(len(ends)):
        for c in ids[chunks[r] : chunks[r + 1]]:
            last[c] = r
    reach = 0
    for r in range(len(ends)):
        for c in ids[chunks[r] : chunks[r + 1]]:
            reach = max(reach, last[c])
        ends[r] = reach <= r
    return ends
