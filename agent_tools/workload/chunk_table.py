"""Chunk hashes to dense chunk ids, at tens of millions a second: a parser for LMCache's hex lists and an exact hash table."""

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

_NOT_HEX = 0xFF
_HEX = np.full(256, _NOT_HEX, dtype=np.uint8)
for _digit, _char in enumerate(b"0123456789abcdef"):
    _HEX[_char] = _digit

_EMPTY = -1
_QUOTE, _OPEN, _CLOSE, _COMMA, _SPACE = (ord(char) for char in '"[], ')
_ZERO, _X = ord("0"), ord("x")
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2**64 / golden ratio. Multiplying by it and taking the top bits spreads any keys evenly (Knuth, Fibonacci hashing)."""


class ChunkTable:
    """All (model, chunk hash) pairs met so far, numbered by first appearance. Exact: all bytes of a hash are compared."""

    def __init__(self, hash_bytes: int) -> None:
        """Create an empty table for hashes of `hash_bytes` bytes each."""
        self.hash_bytes = hash_bytes
        self._words = -(-hash_bytes // 8)
        self._keys = np.empty((0, self._words), dtype=np.uint64)
        self._models = np.empty(0, dtype=np.int16)
        self._slots = np.full(1024, _EMPTY, dtype=np.int32)
        self._size = 0

    def ids(self, hashes: npt.NDArray[np.uint8], models: npt.NDArray[np.int16]) -> npt.NDArray[np.int32]:
        """Return (chunks,) the id of each hash under its model. A new hash gets the next free id.

        `hashes` is (chunks, hash_bytes), `models` (chunks,).
        """
        keys = np.zeros((len(hashes), self._words * 8), dtype=np.uint8)
        keys[:, : self.hash_bytes] = hashes
        self._make_room(len(hashes))
        ids = np.empty(len(hashes), dtype=np.int32)
        self._size = _intern(keys.view(np.uint64), models, ids, self._slots, self._keys, self._models, self._size)
        return ids

    def hashes(self) -> npt.NDArray[np.uint8]:
        """Return (ids, hash_bytes) the hash of each id, raw bytes."""
        return self._keys[: self._size].view(np.uint8)[:, : self.hash_bytes]

    def _make_room(self, chunks: int) -> None:
        needed = self._size + chunks
        if needed > len(self._keys):
            grown = np.empty((max(needed, len(self._keys) * 3 // 2), self._words), dtype=np.uint64)
            models = np.empty(len(grown), dtype=np.int16)
            grown[: self._size], models[: self._size] = self._keys[: self._size], self._models[: self._size]
            self._keys, self._models = grown, models
        if 2 * needed > len(self._slots):
            self._slots = np.full(1 << (2 * needed - 1).bit_length(), _EMPTY, dtype=np.int32)
            _fill(self._slots, self._keys[: self._size], self._models)


def parse_hash_lists(
    text: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], hash_bytes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
    """Parse consecutive JSON lists ``["0x..", ..]`` of lower-case hex strings of one width.

    `starts` (lists + 1,) says where in `text` each list begins. Return ``(hashes, counts)``: (chunks, hash_bytes) raw bytes and
    (lists,) the number of hashes in each list. Return ``None`` if a list holds anything else.
    """
    shortest = len('"0x",') + 2 * hash_bytes
    hashes = np.empty((len(text) // shortest + 1, hash_bytes), dtype=np.uint8)
    counts = np.empty(len(starts) - 1, dtype=np.int64)
    found = _parse(text, starts, hashes, counts)
    return None if found < 0 else (hashes[:found], counts)


@compiled
def _parse(
    text: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]
) -> int:
    """Fill `hashes` and `counts`. Return the number of hashes, or -1 at the first unexpected byte."""
    hash_bytes = hashes.shape[1]
    width = 2 * hash_bytes
    found = 0
    for line in range(len(counts)):
        at, end, first = starts[line], starts[line + 1], found
        if end - at < 2 or text[at] != _OPEN or text[end - 1] != _CLOSE:
            return -1
        at += 1
        while at < end - 1:
            if at + width + 4 > end - 1 or text[at] != _QUOTE or text[at + 1] != _ZERO or text[at + 2] != _X:
                return -1
            at += 3
            wrong = 0
            for byte in range(hash_bytes):
                high, low = _HEX[text[at + 2 * byte]], _HEX[text[at + 2 * byte + 1]]
                wrong |= high | low
                hashes[found, byte] = (high << 4) | low
            at += width
            if wrong > 15 or text[at] != _QUOTE:
                return -1
            at += 1
            found += 1
            if at < end - 1:
                if text[at] != _COMMA:
                    return -1
                at += 1 + (text[at + 1] == _SPACE)
        counts[line] = found - first
    return found


@compiled
def _slot(key: npt.NDArray[np.uint64], model: int, slots: int) -> np.int64:
    """Return the slot of a key in a table with `slots` (a power of two) slots."""
    mixed = (key[0] ^ (np.uint64(model) * _SPREAD)) * _SPREAD
    return np.int64((mixed >> np.uint64(32)) & np.uint64(slots - 1))


@compiled
def _intern(
    keys: npt.NDArray[np.uint64],
    models: npt.NDArray[np.int16],
    ids: npt.NDArray[np.int32],
    slots: npt.NDArray[np.int32],
    known: npt.NDArray[np.uint64],
    known_models: npt.NDArray[np.int16],
    size: int,
) -> int:
    """Fill `ids` and add new keys to the table (linear probing). Return the new size.

    A prefix that comes again has the numbers that it got when it came first, one after the other. So the number after the last
    one is tried before the table, which is too large for the processor's cache.
    """
    likely = 0
    for chunk in range(len(keys)):
        if likely < size and _is(likely, keys[chunk], models[chunk], known, known_models):
            ids[chunk] = likely
            likely += 1
            continue
        slot = _slot(keys[chunk], models[chunk], len(slots))
        while True:
            other = slots[slot]
            if other == _EMPTY:
                slots[slot] = size
                known[size] = keys[chunk]
                known_models[size] = models[chunk]
                ids[chunk] = size
                size += 1
                break
            if _is(other, keys[chunk], models[chunk], known, known_models):
                ids[chunk] = other
                break
            slot = (slot + 1) & (len(slots) - 1)
        likely = ids[chunk] + 1
    return size


@compiled
def _is(
    number: int, key: npt.NDArray[np.uint64], model: int, known: npt.NDArray[np.uint64], known_models: npt.NDArray[np.int16]
) -> bool:
    """Return whether a number is of this key."""
    for word in range(len(key)):
        if known[number, word] != key[word]:
            return False
    return bool(known_models[number] == model)


@compiled
def _fill(slots: npt.NDArray[np.int32], keys: npt.NDArray[np.uint64], models: npt.NDArray[np.int16]) -> None:
    """Enter known keys into an empty, larger table."""
    for number in range(len(keys)):
        slot = _slot(keys[number], models[number], len(slots))
        while slots[slot] != _EMPTY:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = number
