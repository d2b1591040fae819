"""The access log: every lookup of a cache, in order, as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio.to_thread
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class AccessLog:
    """Lookups in time order. Chunk ``i`` of a request stands for its whole prefix up to and including chunk ``i``.

    Equal chunk ids therefore mean equal prefixes, as with LMCache's chained hashes. Only whole chunks are listed: a request
    of T tokens has ``T // chunk_size`` of them.
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
    """(unique chunks, 32) LMCache's hash of each chunk id, raw bytes; ``None`` when the source has none."""
    chunk_bytes: int | None = None
    """KV bytes of one chunk as the source states them (shapes x dtypes); ``None`` when it does not."""
    bad_lines: int = 0
    """Lines of the source that could not be read and were left out, as the reader was told to."""
    sampling_rate: float = 1.0
    """Share of all distinct chunks that the source recorded: a cache of ``n`` chunks holds ``n x sampling_rate`` of these."""
    remarks: tuple[str, ...] = ()
    """What the reader had to mend, one sentence each."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def unique_chunks(self) -> int:
        """Number of distinct chunks: the footprint, in chunks."""
        return int(self.chunk_ids.max()) + 1 if len(self.chunk_ids) else 0

    @property
    def duration(self) -> float:
        """Seconds from the first to the last lookup."""
        return float(self.timestamps[-1] - self.timestamps[0]) if len(self) else 0.0

    @property
    def chunks_per_request(self) -> npt.NDArray[np.int64]:
        """(requests,) whole chunks of each request."""
        return np.diff(self.offsets)

    def request(self, index: int) -> npt.NDArray[np.int32]:
        """The chunk ids of one request, first chunk first."""
        return self.chunk_ids[self.offsets[index] : self.offsets[index + 1]]

    def select(self, requests: Sequence[int] | npt.NDArray[np.intp] | slice) -> "AccessLog":
        """The log of some of the requests, in the order given, with chunk ids numbered anew by first appearance."""
        index = np.arange(len(self))[requests] if isinstance(requests, slice) else np.asarray(requests, dtype=np.intp)
        counts = self.chunks_per_request[index]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts) + np.repeat(self.offsets[index], counts)
        chunk_ids, kept = renumber(self.chunk_ids[position])
        return replace(
            self,
            chunk_ids=chunk_ids,
            offsets=offsets,
            tokens=self.tokens[index],
            timestamps=self.timestamps[index],
            tenants=self.tenants[index],
            models=self.models[index],
            hashes=None if self.hashes is None else self.hashes[kept],
        )


async def lookups_since(log: AccessLog | None, instant: float | None) -> AccessLog | None:
    """The lookups at or after a time; in a thread where some are to be left out, which takes long for a large log."""
    if log is None or instant is None or not len(log) or log.timestamps[0] >= instant:
        return log
    return await anyio.to_thread.run_sync(log.select, slice(int(np.searchsorted(log.timestamps, instant)), None))


def in_time_order(log: AccessLog) -> AccessLog:
    """The log sorted by time; requests of the same time keep their order."""
    if (np.diff(log.timestamps) >= 0).all():
        return log
    return log.select(np.argsort(log.timestamps, kind="stable"))


def renumber(ids: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.integer]]:
    """Dense ids by first appearance, and the old id of each new one.

    Returns ``(new_ids, old_ids)``: ``old_ids[new_ids] == ids``.
    """
    values, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(values), dtype=np.int32)
    rank[order] = np.arange(len(values), dtype=np.int32)
    return rank[inverse], values[order]
