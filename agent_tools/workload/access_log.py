"""The access log: all lookups of a cache, in order, as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled

if TYPE_CHECKING:
    from .chunk_layout import ChunkLayout


@dataclass(frozen=True, eq=False)
class AccessLog:
    """Lookups in time order. Chunk ``i`` of a request stands for its whole prefix up to and including chunk ``i``.

    Equal chunk ids therefore mean equal prefixes, as with LMCache's chained hashes. Only whole chunks are listed: a request of T
    tokens has ``T // chunk_size`` chunks.
    """

    chunk_size: int
    """Tokens per chunk."""
    chunk_ids: npt.NDArray[np.int32]
    """(chunks,) dense ids, numbered from 0 by first appearance."""
    offsets: npt.NDArray[np.int64]
    """(requests + 1,) request ``r`` owns ``chunk_ids[offsets[r]:offsets[r + 1]]``."""
    tokens: npt.NDArray[np.int64]
    """(requests,) prompt length in tokens, tail included."""
    timestamps: npt.NDArray[np.float64]
    """(requests,) seconds; Unix time for a live log, from 0 for a recorded trace."""
    tenants: npt.NDArray[np.int16]
    """(requests,) index into `tenant_names`."""
    models: npt.NDArray[np.int16]
    """(requests,) index into `model_names`."""
    tenant_names: tuple[str, ...] = ("",)
    model_names: tuple[str, ...] = ("",)
    hashes: npt.NDArray[np.uint8] | None = None
    """(unique chunks, 32) LMCache's hash of each chunk id, raw bytes; ``None`` if the source has no hashes."""
    chunk_bytes: int | None = None
    """KV bytes of an average distinct chunk: of all its ranks and object groups where `layouts` has them, else of one rank as the
    source states it (shapes x dtypes). ``None`` if the source does not state it."""
    layouts: "tuple[ChunkLayout | None, ...]" = ()
    """What a chunk of each model is made of, in the order of `model_names`; empty if nothing is known. Chunks then count as
    equally large."""
    bad_lines: int = 0
    """Lines of the source that could not be read and that the caller chose to skip."""
    sampling_rate: float = 1.0
    """Share of all distinct chunks that the source recorded: a cache of ``n`` chunks holds ``n x sampling_rate`` recorded
    chunks."""
    remarks: tuple[str, ...] = ()
    """What the reader had to correct, one sentence each."""
    source: str = ""
    """Format of the file it was read from, in words; empty for a live cache."""
    assumed: tuple[str, ...] = ()
    """What the file does not state and the reader assumed, one clause each."""
    sessions: npt.NDArray[np.int32] | None = None
    """(requests,) number of the conversation of each request, -1 for none; ``None`` if the source does not name them."""
    think_seconds: npt.NDArray[np.float64] | None = None
    """(requests,) seconds between the answer to the session's turn before and this request, NaN for a request with a time of its
    own. ``None`` for an open loop: all requests have times."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def unique_chunks(self) -> int:
        """Return the number of distinct chunks: the footprint, in chunks."""
        return int(self.chunk_ids.max()) + 1 if len(self.chunk_ids) else 0

    @property
    def duration(self) -> float:
        """Return the seconds from the first to the last lookup."""
        return float(self.timestamps[-1] - self.timestamps[0]) if len(self) else 0.0

    @property
    def chunks_per_request(self) -> npt.NDArray[np.int64]:
        """Return (requests,) whole chunks of each request."""
        return np.diff(self.offsets)

    def request(self, index: int) -> npt.NDArray[np.int32]:
        """Return the chunk ids of one request, first chunk first."""
        return self.chunk_ids[self.offsets[index] : self.offsets[index + 1]]

    def select(self, requests: Sequence[int] | npt.NDArray[np.intp] | slice) -> "AccessLog":
        """Return the log of some of the requests, in the given order, with chunk ids renumbered by first appearance."""
        index = np.arange(len(self))[requests] if isinstance(requests, slice) else np.asarray(requests, dtype=np.intp)
        offsets = np.concatenate(([0], np.cumsum(self.chunks_per_request[index])))
        chunk_ids, kept = _taken(self.chunk_ids, self.offsets, index, offsets, self.unique_chunks)
        return replace(
            self,
            chunk_ids=chunk_ids,
            offsets=offsets,
            tokens=self.tokens[index],
            timestamps=self.timestamps[index],
            tenants=self.tenants[index],
            models=self.models[index],
            hashes=None if self.hashes is None else self.hashes[kept],
            sessions=None if self.sessions is None else self.sessions[index],
            think_seconds=None if self.think_seconds is None else self.think_seconds[index],
        )


async def lookups_since(log: AccessLog | None, instant: float | None) -> AccessLog | None:
    """Return the lookups at or after a time (seconds, as in the log).

    Leaving lookups out takes long for a large log, so it runs in a thread.
    """
    if log is None or instant is None or not len(log) or log.timestamps[0] >= instant:
        return log
    return await anyio.to_thread.run_sync(log.select, slice(int(np.searchsorted(log.timestamps, instant)), None))


def in_time_order(log: AccessLog) -> AccessLog:
    """Return the log sorted by time. Requests of the same time keep their order."""
    if (np.diff(log.timestamps) >= 0).all():
        return log
    return log.select(np.argsort(log.timestamps, kind="stable"))


def renumber(ids: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.integer]]:
    """Renumber ids densely by first appearance.

    Return ``(new_ids, old_ids)`` with ``old_ids[new_ids] == ids``.
    """
    values, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(values), dtype=np.int32)
    rank[order] = np.arange(len(values), dtype=np.int32)
    return rank[inverse], values[order]


@compiled
def _taken(
    chunk_ids: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    index: npt.NDArray[np.intp],
    new_offsets: npt.NDArray[np.int64],
    unique: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the chunks of some requests, renumbered by first appearance, and the old id of each new one."""
    number = np.full(unique, -1, np.int32)
    old = np.empty(unique, np.int32)
    taken = np.empty(new_offsets[-1], np.int32)
    known, at = 0, 0
    for r in index:
        for i in range(offsets[r], offsets[r + 1]):
            c = chunk_ids[i]
            if number[c] < 0:
                number[c] = known
                old[known] = c
                known += 1
            taken[at] = number[c]
            at += 1
    return taken, old[:known].copy()
