"""The hit-rate curve of a log of any size in constant memory, by sampling chunks (after SHARDS; Waldspurger et al., FAST 2015).

A sampled chunk is followed from its first use on. Deeper chunks of a prefix were never touched later than shallower ones, so a
followed chunk's distance says by itself whether its whole prefix is resident.

Plain sampling at 1 % errs by points, because a few prefixes have most of the hits. Four things make the error small:

* The log is read twice. The first reading counts each chunk in a count-min sketch, and the distinct chunks with HyperLogLog. The
  second follows only chunks that come again, and those that come often are more likely to be followed.
* Followed chunks are evenly spaced in the order of first use, so that each prefix has its share of them.
* Of the chunks touched between two uses, the new ones are counted and not sampled, and so are the shallower ones of the same
  lookup. Only chunks that were known before are estimated from the sample.
* Hits are a share of all hits, whose number is known (the adjustment of SHARDS corrects the first bucket to the same end).

The stated error is the jackknife's: the curve without each of `GROUPS` groups of followed chunks. For evenly spaced chunks it is
too large rather than too small.
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

from .hit_rate_curve import ROUNDING
from .sample_kernels import Floats, count, follow, move, rebuild

GROUPS = 16
"""Groups of sampled chunks: the curves without one of them give the error (jackknife)."""
FEWEST = 2**14
"""Chunks to follow at least; a log with fewer distinct chunks is counted exactly."""
MOST = 2**18
"""Chunks to follow at most: 100 GB of lookups then take the memory that 10 GB takes."""
WIDEST = 2**24
"""Counters in a row of the largest sketch."""
ROWS = 3
_REGISTERS = 2**20
BINS = 2**14
"""Steps of capacity of the curve."""
STUDENT = 1.753
"""90 % quantile (two-sided) of Student's t with GROUPS - 1 degrees of freedom."""
DISTINCT_ERROR = 0.0009
"""Standard error of the count of distinct chunks, at most (0.84 / sqrt(registers), rounded up)."""
_EMPTY = -1


class SampledPoint(Frozen):
    """The curve at one capacity."""

    capacity_chunks: Annotated[float, Field(gt=0)]
    """Capacity of an always-full LRU, chunks."""
    hit_rate: Annotated[float, Field(ge=0, le=1)]
    """Token hit rate over whole chunks, estimated."""
    error: Annotated[float, Field(ge=0)]
    """Half of an interval that holds the truth in at least 90 of 100 samples."""


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
    sampled_chunks: int
    """Chunks that were followed."""
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
        rate: Share of the distinct chunks to follow at most, within `FEWEST` and `MOST`.
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
    blocks: Callable[[], Iterable[KeyBlock]],
    size: int,
    rate: float,
    *,
    points: int = 40,
    start: float = 0.5,
    fewest: int = FEWEST,
) -> SampledCurve:
    """Return the curve of a log that can be read twice.

    Args:
        blocks: Begins a reading of the log.
        size: Bytes of the log, from which the width of the sketch follows.
        rate: Share of the distinct chunks to follow.
        points: Number of capacities.
        start: Chooses the sample: where in the first step, from 0 to 1, its first chunk is.
        fewest: Chunks to follow at least.
    """
    if not 0 < rate <= 1:
        raise WorkloadError(f"the sampled share must be above 0 and at most 1, not {rate:g}")
    counts = _counted(blocks(), size)
    if not counts.chunks:
        raise WorkloadError("the log holds no whole chunk, so there is no curve")
    wanted = min(max(rate * counts.distinct, fewest), MOST)
    exact = wanted >= counts.distinct
    bin_size = max(counts.distinct / BINS, 1.0)
    sample = _Sample(0.0 if exact else max(counts.wish / wanted, 1.0), wanted, bin_size, start)
    for block in blocks():
        sample.add(block, counts.sketch)
    distinct = sample.followed if exact else counts.distinct
    ceiling = (counts.chunks - distinct) / counts.chunks
    capacities = np.geomspace(max(distinct / 200, 1), max(distinct, 1), points).astype(np.float64)
    curves = sample.hits(capacities) * ceiling
    errors = np.zeros(points) if exact else _errors(curves[1:], distinct / counts.chunks)
    return SampledCurve(
        requests=counts.requests,
        chunks=counts.chunks,
        footprint_chunks=distinct,
        chunk_size=counts.chunk_size,
        sampled_chunks=sample.followed,
        ceiling=ceiling,
        points=tuple(
            SampledPoint(capacity_chunks=capacity, hit_rate=rate, error=error)
            for capacity, rate, error in zip(capacities.tolist(), curves[0].clip(0, 1).tolist(), errors.tolist(), strict=True)
        ),
    )


def _errors(without: Floats, distinct_share: float) -> Floats:
    """Return the half of the 90 % interval: by the jackknife over the groups, and from the error of the distinct chunks."""
    variance: Floats = (GROUPS - 1) * without.var(axis=0) + (DISTINCT_ERROR * distinct_share) ** 2
    return STUDENT * np.sqrt(variance)


class _Counts(NamedTuple):
    requests: int
    chunks: int
    distinct: float
    wish: float
    chunk_size: int
    sketch: npt.NDArray[np.uint16]


def _counted(blocks: Iterable[KeyBlock], size: int) -> _Counts:
    """Read the log once. A lookup log has about 73 bytes for each chunk; the sketch has two counters for each, up to `WIDEST`."""
    width = min(1 << max(int(size / 73 * 2), 2**12).bit_length(), WIDEST)
    sketch, registers, distinct = np.zeros((ROWS, width), np.uint16), np.zeros(_REGISTERS, np.uint8), np.array([0.0, 1.0, 0.0])
    requests, chunks, chunk_size = 0, 0, 0
    for block in blocks:
        count(block.keys, sketch, registers, distinct)
        requests, chunks, chunk_size = requests + len(block.counts), chunks + len(block.keys), block.chunk_size
    return _Counts(requests, chunks, min(float(distinct[0]), chunks), float(distinct[2]), chunk_size, sketch)


class _Sample:
    """The chunks that are followed, when each was last touched, and the distances of their hits."""

    def __init__(self, tau: float, wanted: float, bin_size: float, start: float) -> None:
        self._tau, self._bin, self._carry = tau, bin_size, np.array([start])
        self._table(1 << max(int(4 * wanted), 2**12).bit_length())
        self._times(2 * max(int(wanted), 2**10))
        self._hits = np.zeros((GROUPS + 1, BINS + 2), np.float64)
        self._state = np.zeros(2, np.int64)  # the latest position, and the followed chunks
        self._registers, self._distinct = np.zeros(_REGISTERS, np.uint8), np.array([0.0, 1.0, 0.0])

    def _table(self, room: int) -> None:
        self._keys, self._last = np.zeros(room, np.uint64), np.full(room, _EMPTY, np.int64)
        self._weights, self._groups = np.zeros(room, np.float64), np.zeros(room, np.int64)

    def _times(self, room: int) -> None:
        self._tree, self._born = np.zeros((room, GROUPS + 1), np.float64), np.zeros((room, GROUPS + 1), np.float64)
        self._seen_by = np.zeros(room, np.float64)

    @property
    def followed(self) -> int:
        """Return how many chunks are followed."""
        return int(self._state[1])

    def add(self, block: KeyBlock, sketch: npt.NDArray[np.uint16]) -> None:
        offsets, start = np.concatenate(([0], np.cumsum(block.counts))), 0
        while start < len(block.counts):
            start = follow(
                block.keys, offsets, start, sketch, self._tau, self._carry, self._bin,
                self._keys, self._last, self._weights, self._groups, self._tree, self._born, self._seen_by,
                self._hits, self._state, self._registers, self._distinct,
            )  # fmt: skip
            if 2 * self._state[1] > len(self._keys) / 2:
                self._grow()
            if start < len(block.counts):
                self._compact()

    def hits(self, capacities: Floats) -> Floats:
        """Return the hits at each capacity as a share of all hits: of all groups (row 0), and without each group."""
        total = self._hits.sum(axis=1, keepdims=True)
        up_to = np.cumsum(np.pad(self._hits, ((0, 0), (1, 0))), axis=1) / np.where(total, total, 1)
        places = (
            capacities / self._bin if self._bin > 1 else np.floor(capacities + ROUNDING)
        )  # fractions of a chunk are no capacity
        return np.array([np.interp(places, np.arange(up_to.shape[1]), row) for row in up_to])

    def _compact(self) -> None:
        """Number the positions anew, without gaps, because they are used up."""
        used = np.flatnonzero(self._last >= 0)
        positions, ranks = np.unique(self._last[used], return_inverse=True)
        born, seen_by, latest = self._born[positions], self._seen_by[positions], self._born[self._state[0]].copy()
        self._times(max(len(self._tree), 4 * len(positions)))
        self._born[1 : len(positions) + 1], self._seen_by[1 : len(positions) + 1] = born, seen_by
        self._born[len(positions)] = latest
        self._last[used] = ranks + 1
        rebuild(self._tree, self._last, self._weights, self._groups)
        self._state[0] = len(positions)

    def _grow(self) -> None:
        old = self._keys, self._last, self._weights, self._groups
        self._table(2 * len(self._keys))
        move(*old, self._keys, self._last, self._weights, self._groups)
