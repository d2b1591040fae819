"""Count distinct values among very many, in 8 bytes each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
_FACTOR = np.int64(0x5851F42D4C957F2D)


def hashes_of(names: Sequence[str]) -> Int64:
    """Return the 64-bit hash of each name. Python salts them anew in each process, so that nobody can choose two that collide."""
    return np.fromiter(map(hash, names), np.int64, len(names))


def hashes_of_rows(columns: Sequence[Int64], rows: int) -> Int64:
    """Return a hash of each row of columns, from the hashes of its names."""
    mixed: Int64 = np.zeros(rows, np.int64)
    for column in columns:
        mixed = mixed * _FACTOR + column  # wraps around
    return mixed


class Distinct:
    """Values by their hashes. Two of a million values have the same hash with a probability of 3e-8."""

    def __init__(self) -> None:
        """Start without values."""
        self.added = 0
        """Number of values, each as often as it was added."""
        self._hashes: list[Int64] = []

    def add(self, hashes: Int64) -> None:
        """Add values by their hashes."""
        self._hashes.append(hashes)
        self.added += len(hashes)

    def __len__(self) -> int:
        """Return how many differ."""
        return len(np.unique(np.concatenate(self._hashes))) if self._hashes else 0
