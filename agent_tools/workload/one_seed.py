"""Files whose hashes cannot be compared: two processes hashed the same prompts with different seeds.

LMCache's ``builtin`` hash of an in-process engine has another seed in each process unless ``PYTHONHASHSEED`` is set. Then the
same prompt has other hashes after a restart, and the files of the two processes must not be read as one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent_tools.errors import WorkloadError

FEWEST = 20
"""A group of files with fewer chunks than this says nothing about its seed."""


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
