"""An eviction order in flat arrays: a circular, doubly linked list over chunk ids. Every step is O(1).

``newer[c]`` and ``older[c]`` are the neighbours of chunk c. Ids from the number of chunks upwards are list ends, so several
lists (one per tenant) can share the two arrays. ``newer[end]`` is the oldest chunk of a list, ``older[end]`` the newest. A chunk
in no list has ``newer[c] == ABSENT``.
"""

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

Links = npt.NDArray[np.int32]

ABSENT = -1


def empty_order(chunks: int, ends: int = 1) -> tuple[Links, Links]:
    """Return ``(newer, older)`` for the given number of chunks and lists, with all lists empty."""
    newer = np.full(chunks + ends, ABSENT, np.int32)
    newer[chunks:] = np.arange(chunks, chunks + ends)
    return newer, newer.copy()


@compiled
def push_newest(newer: Links, older: Links, end: int, chunk: int) -> None:
    """Add a chunk that is in no list as the newest of the list that ends at ``end``."""
    last = older[end]
    newer[last] = chunk
    older[chunk] = last
    newer[chunk] = end
    older[end] = chunk


@compiled
def take_out(newer: Links, older: Links, chunk: int) -> None:
    """Remove a chunk from its list."""
    before, after = older[chunk], newer[chunk]
    newer[before] = after
    older[after] = before
    newer[chunk] = ABSENT


@compiled
def move_to_newest(newer: Links, older: Links, end: int, chunk: int) -> None:
    """Make a chunk the newest of its list, which ends at ``end``."""
    take_out(newer, older, chunk)
    push_newest(newer, older, end, chunk)


@compiled
def touch_block(newer: Links, older: Links, end: int, chunks: Links, add: bool) -> int:
    """Touch chunks tail first, as LMCache does, so that the first chunk becomes the newest. Return how many were added.

    Chunks that are not in the list are added if ``add`` is true, otherwise skipped. Neighbours that already stand in this order
    move as one piece.
    """
    added = 0
    last = older[end]
    i = len(chunks) - 1
    while i >= 0:
        tail = chunks[i]
        head = tail
        i -= 1
        if newer[tail] == ABSENT:
            if not add:
                continue
            added += 1
        else:
            while i >= 0 and newer[head] == chunks[i]:
                head = chunks[i]
                i -= 1
            before, after = older[tail], newer[head]
            newer[before] = after
            if after == end:
                last = before
            else:
                older[after] = before
        newer[last] = tail
        older[tail] = last
        newer[head] = end
        last = head
    older[end] = last
    return added


@compiled
def drop_oldest(newer: Links, older: Links, end: int, count: int) -> None:
    """Remove the ``count`` oldest chunks from the list that ends at ``end``. The list must hold that many."""
    chunk = newer[end]
    for _ in range(count):
        after = newer[chunk]
        newer[chunk] = ABSENT
        chunk = after
    newer[end] = chunk
    older[chunk] = end


@compiled
def batch_size(tracked: int, ratio: float) -> int:
    """Return how many keys one eviction of LMCache 0.5.6 drops: ``ratio`` of the tracked keys, and at least one if ratio > 0."""
    ratio = min(max(ratio, 0.0), 1.0)
    count = int(tracked * ratio)
    if count == 0 and ratio > 0 and tracked > 0:
        return 1
    return count
