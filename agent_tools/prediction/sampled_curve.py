"""The hit-rate curve of a log of any size in constant memory, by spatial sampling (SHARDS; Waldspurger et al., FAST 2015).

Whether a chunk is sampled depends on its hash alone, so a sampled chunk is seen at every use. Deeper chunks of a prefix were
never touched later than shallower ones, so a sampled chunk's distance says by itself whether its whole prefix is resident.

Plain sampling at 1 % errs by points, because a few prefixes have most of the hits. So the log is read twice. The first reading
counts each chunk in a count-min sketch, and the distinct chunks with HyperLogLog. The second takes two samples:

* of all chunks alike, for distances: how many distinct chunks were touched in between;
* of chunks in proportion to their reuse, for hits: those that come again often are all in it, at their own weight.

`REPLICATES` pairs of samples give the stated error.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from agent_tools.errors import WorkloadError
from agent_tools.models.config import Frozen
from agent_tools.workload.lookup_log import KeyBlock, lookup_keys

from .sample_kernels import Floats, count, follow, move, rebuild

REPLICATES = 4
"""Pairs of samples, each with its share of the sampled chunks."""
FEWEST = 2**14
"""Chunks that each kind of sample has at least, over all replicates; a log with fewer distinct chunks is counted exactly."""
MOST = 2**20
"""Chunks that each kind of sample has at most: 10 GB of lookups then take the memory that 1 GB takes."""
WIDEST = 2**24
"""Counters in a row of the largest sketch."""
ROWS = 3
_REGISTERS = 2**20
BINS = 2**14
"""Steps of capacity of the curve."""
STUDENT = 2.353
"""90 % quantile (two-sided) of Student's t with REPLICATES - 1 degrees of freedom."""
_EMPTY = -1


class SampledPoint(Frozen):
    """The curve at one capacity."""

    capacity_chunks: Annotated[float, Field(gt=0)]
    """Capacity of an always-full LRU, chunks."""
    hit_rate: Annotated[float, Field(ge=0, le=1)]
    """Token hit rate over whole chunks, estimated."""
    error: Annotated[float, Field(ge=0)]
    """Half of the 90 % interval of the estimate, from the replicates."""


class SampledCurve(Frozen):
    """A hit-rate curve from samples, with its error."""

    requests: int
    """Lookups in the log."""
    chunks: int
    """Whole chunks asked for; exact."""
    footprint_chunks: float
    """Distinct chunks, estimated within about 0.1 %."""
    chunk_size: int
    """Tokens per chunk."""
    sampled_share: float
    """Share of the distinct chunks in the sample for distances."""
    sampled_chunks: int
    """Chunks that were followed, both kinds together."""
    ceiling: Annotated[float, Field(ge=0, le=1)]
    """Token hit rate of an unbounded cache."""
    points: tuple[SampledPoint, ...]
    """Smallest capacity first."""


def sampled_curve(
    path: Path, rate: float = 0.01, *, points: int = 40, chunk_size: int | None = None, skip_bad_lines: bool = False
) -> SampledCurve:
    """Return the curve of a lookup-hash log of any size.

    Args:
        path: The log's file or folder. It is read twice.
        rate: Share of the distinct chunks to follow, within `FEWEST` and `MOST`.
        points: Number of capacities.
        chunk_size: Read only lookups with this chunk size.
        skip_bad_lines: Leave broken lines out.

    Raises:
        WorkloadError: The log cannot be read, or holds no lookups; or the rate is not in (0, 1].
    """
    return curve_of_blocks(
        lambda: lookup_keys(path, chunk_size=chunk_size, skip_bad_lines=skip_bad_lines), _bytes(path), rate, points=points
    )


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size * (4 if file.suffix in {".gz", ".zst"} else 1) for file in files if file.is_file())


def curve_of_blocks(
    blocks: Callable[[], Iterable[KeyBlock]], size: int, rate: float, *, points: int = 40, seed: int = 0, fewest: int = FEWEST
) -> SampledCurve:
    """Return the curve of a log that can be read twice.

    Args:
        blocks: Begins a reading of the log.
        size: Bytes of the log, from which the width of the sketch follows.
        rate: Share of the distinct chunks to follow.
        points: Number of capacities.
        seed: Chooses the samples.
        fewest: Chunks to follow at least.
    """
    if not 0 < rate <= 1:
        raise WorkloadError(f"the sampled share must be above 0 and at most 1, not {rate:g}")
    counts = _counted(blocks(), size)
    if not counts.chunks:
        raise WorkloadError("the log holds no whole chunk, so there is no curve")
    wanted = min(max(rate * counts.distinct, fewest), MOST) / REPLICATES
    share = wanted / counts.distinct
    if REPLICATES * share >= 1:  # everything is followed, once
        wanted, share = counts.distinct, 1.0
    tau = max(counts.chunks - counts.distinct, 0.0) / wanted if share < 1 else 0.0
    bin_size = max(counts.distinct / BINS, 1.0)
    replicates = [_Replicate(share, tau, wanted, bin_size, seed * REPLICATES + number) for number in range(REPLICATES)]
    if share == 1:
        replicates = replicates[:1]
    for block in blocks():
        for one in replicates:
            one.add(block, counts.sketch)
    distinct = counts.distinct if share < 1 else replicates[0].followed
    ceiling = (counts.chunks - distinct) / counts.chunks
    capacities = np.geomspace(max(distinct / 200, 1), max(distinct, 1), points).astype(np.float64)
    curves = np.array([one.hits(capacities, bin_size) for one in replicates]) * ceiling
    spread = curves.std(axis=0, ddof=1) / np.sqrt(len(curves)) * STUDENT if len(curves) > 1 else np.zeros(points)
    return SampledCurve(
        requests=counts.requests,
        chunks=counts.chunks,
        footprint_chunks=distinct,
        chunk_size=counts.chunk_size,
        sampled_share=min(share * len(replicates), 1.0),
        sampled_chunks=sum(one.followed for one in replicates),
        ceiling=ceiling,
        points=tuple(
            SampledPoint(capacity_chunks=capacity, hit_rate=rate, error=error)
            for capacity, rate, error in zip(
                capacities.tolist(), curves.mean(axis=0).clip(0, 1).tolist(), spread.tolist(), strict=True
            )
        ),
    )


class _Counts(NamedTuple):
    requests: int
    chunks: int
    distinct: float
    chunk_size: int
    sketch: npt.NDArray[np.uint16]


def _counted(blocks: Iterable[KeyBlock], size: int) -> _Counts:
    """Read the log once. A lookup log has about 73 bytes for each chunk; the sketch has two counters for each, up to `WIDEST`."""
    width = min(1 << max(int(size / 73 * 2), 2**12).bit_length(), WIDEST)
    sketch, registers = np.zeros((ROWS, width), np.uint16), np.zeros(_REGISTERS, np.uint8)
    requests, chunks, chunk_size = 0, 0, 0
    for block in blocks:
        count(block.keys, sketch, registers)
        requests, chunks, chunk_size = requests + len(block.counts), chunks + len(block.keys), block.chunk_size
    return _Counts(requests, chunks, min(_distinct(registers), chunks), chunk_size, sketch)


def _distinct(registers: npt.NDArray[np.uint8]) -> float:
    """Return the HyperLogLog estimate (Flajolet et al. 2007), with linear counting while registers are empty."""
    size, empty = len(registers), int((registers == 0).sum())
    estimate = 0.7213 / (1 + 1.079 / size) * size**2 / float(np.ldexp(1.0, -registers.astype(np.int32)).sum())
    return size * float(np.log(size / empty)) if empty and estimate < 5 * size else estimate


class _Replicate:
    """One pair of samples: the chunks that are followed, when each was last touched, and the distances of their hits."""

    def __init__(self, share: float, tau: float, wanted: float, bin_size: float, seed: int) -> None:
        self._share, self._tau, self._bin, self._seed = share, tau, bin_size, seed
        room = 1 << max(int(8 * wanted), 2**12).bit_length()
        self._keys = np.zeros(room, np.uint64)
        self._last = np.full(room, _EMPTY, np.int64)
        self._weights = np.zeros((room, 2), np.float64)
        self._tree = np.zeros(4 * max(int(wanted), 2**10) + 1, np.float64)
        self._hits = np.zeros(BINS + 2, np.float64)
        self._state = np.zeros(2, np.int64)  # the latest position, and the followed chunks
        self._total = np.zeros(1, np.float64)

    @property
    def followed(self) -> int:
        """Return how many chunks are followed."""
        return int(self._state[1])

    def add(self, block: KeyBlock, sketch: npt.NDArray[np.uint16]) -> None:
        offsets, start = np.concatenate(([0], np.cumsum(block.counts))), 0
        while start < len(block.counts):
            start = follow(
                block.keys, offsets, start, sketch, self._share, self._tau, self._seed, self._bin,
                self._keys, self._last, self._weights, self._tree, self._hits, self._state, self._total,
            )  # fmt: skip
            if 2 * self._state[1] > len(self._keys):
                self._grow()
            if start < len(block.counts):
                self._compact()

    def hits(self, capacities: Floats, bin_size: float) -> Floats:
        """Return the hits at each capacity, as a share of all hits."""
        total = self._hits.sum()
        up_to = np.concatenate(([0.0], np.cumsum(self._hits)))
        places = capacities / bin_size if bin_size > 1 else np.floor(capacities)  # fractions of a chunk are no capacity
        shares: Floats = np.interp(places, np.arange(len(up_to)), up_to) / total if total else np.zeros(len(capacities))
        return shares

    def _compact(self) -> None:
        """Number the positions anew, without gaps, because they are used up."""
        used = np.flatnonzero(self._last >= 0)
        positions, ranks = np.unique(self._last[used], return_inverse=True)
        if 2 * len(positions) >= len(self._tree):
            self._tree = np.zeros(2 * len(self._tree), np.float64)
        self._tree[:] = 0
        self._last[used] = ranks + 1
        rebuild(self._tree, self._last, self._weights)
        self._state[0] = len(positions)

    def _grow(self) -> None:
        keys, last, weights = self._keys, self._last, self._weights
        self._keys = np.zeros(2 * len(keys), np.uint64)
        self._last = np.full(2 * len(keys), _EMPTY, np.int64)
        self._weights = np.zeros((2 * len(keys), 2), np.float64)
        move(keys, last, weights, self._keys, self._last, self._weights)
