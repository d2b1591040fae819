"""The workload window: the last lookups in memory of a fixed size, sampled by chunk when it would not reach back far enough."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .lookups import Lookup

MAX_NAMES = 4096
"""Tenants, and models, that are told apart; later ones are index -1."""
MAX_ANSWER_CHUNKS = 1_000_000
"""Chunk references in one answer, unless a single lookup has more."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2**64 / golden ratio: spreads also hashes that are not random, such as Python's own (Knuth, Fibonacci hashing)."""

_RECORD = np.dtype(
    [
        ("time", "<f8"),
        ("tokens", "<i8"),
        ("chunks", "<i4"),
        ("hit_l1", "<i4"),
        ("hit_l2", "<i4"),
        ("tenant", "<i2"),
        ("model", "<i2"),
        ("recorded", "<i4"),
    ]
)
COLUMNS = _RECORD.names or ()

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Slice:
    """Some consecutive lookups of the window."""

    first: int
    """Sequence number of the first one."""
    records: npt.NDArray[Any]
    """(lookups,) of `_RECORD`."""
    chunks: Hashes
    """(sum of ``recorded``,) the recorded chunks of all, one lookup after the other."""
    rate: float
    more: bool
    lost: int


class Window:
    """Two rings: lookups, and the chunks they asked for. Memory is bounded by both; it is touched as it fills."""

    def __init__(self, requests: int, chunks: int, seconds: float) -> None:
        """At most `requests` lookups with `chunks` chunk references; by sampling, at least `seconds` of traffic."""
        self._seconds = seconds
        self._records = np.empty(requests, dtype=_RECORD)
        self._starts = np.empty(requests, dtype=np.int64)  # where in the endless line of chunks each lookup's begin
        self._chunks: Hashes = np.empty(chunks, dtype=np.uint64)
        self._halvings = 0
        self._first = self._next = 0  # sequence numbers
        self._end = 0  # of the endless line of chunks
        self._names: dict[str, dict[Any, int]] = {"tenant": {}, "model": {}}  # a model's name and its world size
        self._lock = threading.Lock()

    def add(self, lookup: Lookup) -> None:
        """Record a lookup, at the cost of the oldest ones."""
        asked = _prefixes(lookup.hashes)
        with self._lock:
            chunks = self._sampled(asked)
            while not self._has_room(len(chunks)):
                held = self._next - self._first
                if held and (held == len(self._records) or self._oldest() <= lookup.time - self._seconds):
                    self._first += 1
                else:
                    self._halve()
                    chunks = self._sampled(chunks)
            self._append(lookup, chunks)

    def forget(self) -> None:
        """Empty it; from now on every chunk is recorded again. Sequence numbers go on."""
        with self._lock:
            self._first, self._end, self._halvings = self._next, 0, 0

    def since(self, sequence: int, limit: int) -> Slice:
        """Up to `limit` lookups from this sequence number on."""
        with self._lock:
            first = min(max(sequence, self._first), self._next)
            last = min(self._next, first + limit)
            if last > first:
                begins = self._starts[self._slots(first, last)]
                last = first + max(int(np.searchsorted(begins, begins[0] + MAX_ANSWER_CHUNKS)), 1)
            end = self._start(last)
            return Slice(
                first=first,
                records=self._records[self._slots(first, last)],
                chunks=self._chunks[np.arange(self._start(first), end) % len(self._chunks)],
                rate=self.rate,
                more=last < self._next,
                lost=max(first - sequence, 0),
            )

    @property
    def rate(self) -> float:
        """Share of the distinct chunks that is recorded."""
        return 0.5**self._halvings

    @property
    def bounds(self) -> dict[str, float]:
        """How full it is, and how far it reaches back."""
        with self._lock:
            held = self._next - self._first
            return {
                "requests": held,
                "max_requests": len(self._records),
                "chunks": self._end - self._start(self._first),
                "max_chunks": len(self._chunks),
                "oldest": self._oldest() if held else 0.0,
                "next": self._next,
                "rate": self.rate,
            }

    def names(self, kind: str) -> list[Any]:
        """All tenants met, or all models with their world size (0: not known), in the order of their index."""
        with self._lock:
            return list(self._names[kind])

    def _append(self, lookup: Lookup, chunks: Hashes) -> None:
        slot = self._next % len(self._records)
        self._records[slot] = (
            lookup.time,
            lookup.tokens,
            len(lookup.hashes),
            lookup.hit_l1,
            lookup.hit_l2,
            self._number("tenant", lookup.tenant),
            self._number("model", (lookup.model, lookup.world_size)),
            len(chunks),
        )
        self._starts[slot] = self._end
        self._chunks[np.arange(self._end, self._end + len(chunks)) % len(self._chunks)] = chunks
        self._end += len(chunks)
        self._next += 1

    def _halve(self) -> None:
        """Keep every second distinct chunk of all that is held."""
        slots = self._slots(self._first, self._next)
        held = self._chunks[np.arange(self._start(self._first), self._end) % len(self._chunks)]
        self._halvings += 1
        kept = self._is_sampled(held)
        before = np.concatenate(([0], np.cumsum(kept)))
        edges = before[np.concatenate(([0], np.cumsum(self._records["recorded"][slots])))]
        self._starts[slots], self._records["recorded"][slots] = edges[:-1], np.diff(edges)
        self._end = int(edges[-1])
        self._chunks[: self._end] = held[kept]

    def _sampled(self, chunks: Hashes) -> Hashes:
        return chunks[self._is_sampled(chunks)] if self._halvings else chunks

    def _is_sampled(self, chunks: Hashes) -> npt.NDArray[np.bool_]:
        return chunks * _SPREAD >> np.uint64(64 - self._halvings) == 0 if self._halvings else np.ones(len(chunks), dtype=np.bool_)

    def _has_room(self, chunks: int) -> bool:
        held = self._end - self._start(self._first)
        return self._next - self._first < len(self._records) and held + chunks <= len(self._chunks)

    def _start(self, sequence: int) -> int:
        return int(self._starts[sequence % len(self._records)]) if sequence < self._next else self._end

    def _slots(self, first: int, last: int) -> npt.NDArray[np.int64]:
        return np.arange(first, last) % len(self._records)

    def _oldest(self) -> float:
        return float(self._records["time"][self._first % len(self._records)])

    def _number(self, kind: str, name: Any) -> int:  # noqa: ANN401  a string, or a model and its world size
        numbers = self._names[kind]
        if name not in numbers and len(numbers) >= MAX_NAMES:
            return -1
        return numbers.setdefault(name, len(numbers))


def _prefixes(hashes: Sequence[bytes]) -> Hashes:
    """(chunks,) the first 8 bytes of each hash as one little-endian number; all are of one width, 8 bytes or more."""
    if not hashes:
        return np.empty(0, dtype=np.uint64)
    raw = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), -1)
    return np.ascontiguousarray(raw[:, :8]).view("<u8")[:, 0]
