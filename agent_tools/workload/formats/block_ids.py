"""Block ids of a trace: parsing lists of them quickly, and whether an id stands for a block or for a whole prefix."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.chunk_table import ChunkTable

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_OPEN, _CLOSE, _COMMA, _MINUS, _ZERO, _NINE = (ord(char) for char in "[],-09")
_BLANKS = (ord(" "), ord("\t"), ord("\r"), ord("\n"))
_DIGITS = 20
"""The most digits of a 64-bit id. Ids beyond 2**63 wrap around, which keeps different ids different."""
_NOWHERE = -2
LARGEST_DIRECT = 2**25
"""Ids below this are looked up in an array, which takes 4 bytes for each possible id."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class BlockNumbers:
    """Numbers block ids by first appearance.

    Most traces number their blocks from 0, or from 0 in each namespace, so an id is looked up in an array. The first id beyond
    `LARGEST_DIRECT`, or a mixture of ids with and without a namespace, moves everything to a hash table.
    """

    def __init__(self) -> None:
        self._direct = np.full(2**16, -1, np.int32)
        self._latest = np.full(0, -1, np.int64)
        """Namespace in which each id came last."""
        self._size = 0
        self._scoped: bool | None = None
        self._table: ChunkTable | None = None
        self._offset = 0

    def of(self, ids: Int64, namespaces: Int64 | None = None) -> Int32:
        """Return (ids,) the number of each id under its namespace. A namespace's ids come in one call, one after the other."""
        scoped = namespaces is not None
        fits = not len(ids) or (ids.min() >= 0 and ids.max() < LARGEST_DIRECT)
        if self._table is None and fits and self._scoped in {None, scoped} and (namespaces is None or namespaces.all()):
            self._scoped = scoped
            self._make_room(int(ids.max(initial=0)))
            numbers = np.empty(len(ids), np.int32)
            if namespaces is None:
                self._size = _number(ids, self._direct, numbers, self._size)
            else:
                self._size = _number_scoped(ids, namespaces, self._direct, self._latest, numbers, self._size)
            return numbers
        if self._table is None:
            self._move_to_table()
        return self._in_table(ids, namespaces)

    def _move_to_table(self) -> None:
        self._table = ChunkTable(16)
        if self._scoped:  # these namespaces do not come again
            self._offset = self._size
        else:
            known = np.flatnonzero(self._direct >= 0)
            self._in_table(known[np.argsort(self._direct[known])], None)
        self._direct, self._latest = np.empty(0, np.int32), np.empty(0, np.int64)

    def _in_table(self, ids: Int64, namespaces: Int64 | None) -> Int32:
        assert self._table is not None  # noqa: S101  made before
        keys = np.zeros((len(ids), 2), np.int64)
        keys[:, 0], keys[:, 1] = ids, 0 if namespaces is None else namespaces
        return self._table.ids(keys.view(np.uint8).reshape(-1, 16), np.zeros(len(keys), np.int16)) + np.int32(self._offset)

    def _make_room(self, largest: int) -> None:
        size = max(len(self._direct), 1 << largest.bit_length())
        self._direct = _longer(self._direct, size)
        if self._scoped:
            self._latest = _longer(self._latest, size)


def _longer(array: Any, size: int) -> Any:  # noqa: ANN401  int32 or int64
    if size <= len(array):
        return array
    grown = np.full(size, -1, array.dtype)
    grown[: len(array)] = array
    return grown


def parse_id_lists(lists: Sequence[msgspec.Raw]) -> tuple[Int64, Int64] | None:
    """Parse JSON lists of whole numbers.

    Return ``(ids, counts)``: (ids,) all numbers, one list after the other, and (lists,) how many each list has. Return ``None``
    if a list holds anything else, or a number of more than 20 digits.
    """
    text = b"".join(lists)
    ids = np.empty(len(text) // 2 + 1, np.int64)
    counts = np.empty(len(lists), np.int64)
    found = _parse(np.frombuffer(text, np.uint8), ids, counts)
    return None if found < 0 else (ids[:found].copy(), counts)


def leading(ids: Int32, listed: Int64, kept: Int64) -> Int32:
    """Return the first `kept` of the `listed` ids of each request."""
    return ids if np.array_equal(listed, kept) else _leading(ids, listed, kept, np.empty(int(kept.sum()), np.int32))


def first_unchained(chunk_ids: Int32, offsets: Int64, unique: int) -> tuple[int, int] | None:
    """Return the first (request, position) at which an id follows another id than before; ``None`` if every id names a prefix.

    An id that stands for a whole prefix always has the same predecessor, and it occurs once in a request at most.
    """
    request, position = _first_unchained(chunk_ids, offsets, unique)
    return None if request < 0 else (request, position)


def chained(chunk_ids: Int32, offsets: Int64) -> Int32:
    """Return ids that stand for whole prefixes: equal where all ids of a request up to there are equal."""
    slots = 1 << max((2 * len(chunk_ids)).bit_length(), 4)
    return _chain(chunk_ids, offsets, np.full(slots, -1, np.int32), np.empty(len(chunk_ids) + 1, np.uint64))


def prefixes_by_depth(chunk_ids: Int32, offsets: Int64) -> Int32 | None:
    """Return ids that stand for prefixes if an id at one depth always does, though the id comes at several depths.

    Some recorders number the blocks of each depth on their own, so one number is several prefixes. With the depth it is one, and
    chaining gives the same. Return ``None`` if an id comes twice in a request, or follows different ids at the same depth: then
    ids stand for single blocks.
    """
    if _repeats(chunk_ids, offsets, np.full(int(chunk_ids.max()) + 1, -1, np.int64)):
        return None
    counts = np.diff(offsets)
    depth = np.arange(len(chunk_ids)) - np.repeat(offsets[:-1], counts)
    result = chained(chunk_ids, offsets)
    return result if len(np.unique((depth << 32) | chunk_ids)) == int(result.max()) + 1 else None


@compiled
def _number(ids: Int64, direct: Int32, numbers: Int32, size: int) -> int:
    """Fill `numbers`, and `direct` with the numbers of new ids. Return the new size."""
    for i in range(len(ids)):
        number = direct[ids[i]]
        if number < 0:
            number = np.int32(size)
            direct[ids[i]] = number
            size += 1
        numbers[i] = number
    return size


@compiled
def _number_scoped(ids: Int64, namespaces: Int64, direct: Int32, latest: Int64, numbers: Int32, size: int) -> int:
    """Fill `numbers`; `direct` holds the numbers of the ids of the `latest` namespace in which they came. Return the new size."""
    for i in range(len(ids)):
        c = ids[i]
        if latest[c] != namespaces[i]:
            latest[c] = namespaces[i]
            direct[c] = size
            size += 1
        numbers[i] = direct[c]
    return size


@compiled
def is_dense(chunk_ids: Int32) -> bool:
    """Return whether ids are numbered by first appearance, without gaps."""
    known = 0
    for c in chunk_ids:
        if c > known:
            return False
        known += c == known
    return True


@compiled
def _repeats(chunk_ids: Int32, offsets: Int64, latest: Int64) -> bool:
    """Return whether an id comes twice in one request. `latest` holds -1 for each id."""
    for r in range(len(offsets) - 1):
        for c in chunk_ids[offsets[r] : offsets[r + 1]]:
            if latest[c] == r:
                return True
            latest[c] = r
    return False


@compiled
def _parse(text: npt.NDArray[np.uint8], ids: Int64, counts: Int64) -> int:  # noqa: C901  one pass over the text
    """Fill `ids` and `counts` from valid JSON. Return the number of ids, or -1 at the first unexpected byte."""
    found, at = 0, 0
    for line in range(len(counts)):
        if at >= len(text) or text[at] != _OPEN:
            return -1
        at += 1
        first, more = found, False
        while True:
            while text[at] in _BLANKS:
                at += 1
            if text[at] == _CLOSE and not more:
                break
            minus = text[at] == _MINUS
            at += minus
            value, digits = 0, 0
            while _ZERO <= text[at] <= _NINE:
                value = value * 10 + (text[at] - _ZERO)
                digits += 1
                at += 1
            if digits == 0 or digits > _DIGITS:
                return -1
            ids[found] = -value if minus else value
            found += 1
            while text[at] in _BLANKS:
                at += 1
            more = text[at] == _COMMA
            if more:
                at += 1
            elif text[at] != _CLOSE:
                return -1
        at += 1
        counts[line] = found - first
    return found if at == len(text) else -1


@compiled
def _leading(ids: Int32, listed: Int64, kept: Int64, result: Int32) -> Int32:
    source, target = 0, 0
    for r in range(len(listed)):
        result[target : target + kept[r]] = ids[source : source + kept[r]]
        source += listed[r]
        target += kept[r]
    return result


@compiled
def _first_unchained(chunk_ids: Int32, offsets: Int64, unique: int) -> tuple[int, int]:
    parent = np.full(unique, _NOWHERE, np.int32)
    for r in range(len(offsets) - 1):
        previous = np.int32(-1)
        for i in range(offsets[r], offsets[r + 1]):
            c = chunk_ids[i]
            if parent[c] == _NOWHERE:
                parent[c] = previous
            elif parent[c] != previous:
                return r, i - offsets[r]
            previous = c
    return -1, -1


@compiled
def _chain(chunk_ids: Int32, offsets: Int64, slots: Int32, keys: npt.NDArray[np.uint64]) -> Int32:
    """Number the pairs (chained id before, own id) by first appearance, in an open-addressing table."""
    result = np.empty(len(chunk_ids), np.int32)
    size = 0
    mask = np.uint64(len(slots) - 1)
    for r in range(len(offsets) - 1):
        previous = np.uint64(0)
        for i in range(offsets[r], offsets[r + 1]):
            key = (previous << np.uint64(32)) | np.uint64(chunk_ids[i])
            slot = ((key * _SPREAD) >> np.uint64(20)) & mask
            while slots[slot] >= 0 and keys[slots[slot]] != key:
                slot = (slot + np.uint64(1)) & mask
            if slots[slot] < 0:
                slots[slot] = size
                keys[size] = key
                size += 1
            result[i] = slots[slot]
            previous = np.uint64(result[i] + 1)
    return result
