"""Series of a page of metrics, by columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from prometheus_client.samples import Sample

from .distinct import Int64, hashes_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """Series of one name whose labels have the same names: a row each, in columns of equal length."""

    name: str
    labels: Mapping[str, Sequence[str]]
    """The columns of the labels, by name."""
    values: Floats
    _hashes: dict[str, Int64] = field(default_factory=dict)

    def column(self, label: str) -> Sequence[str]:
        """Return the values of a label; empty strings if the series do not have it, which Prometheus takes for the same."""
        return self.labels.get(label) or [""] * len(self.values)

    def hashes(self, label: str) -> Int64:
        """Return the hash of each value of a label."""
        if label not in self._hashes:
            self._hashes[label] = hashes_of(self.column(label))
        return self._hashes[label]

    def where(self, label: str, value: str) -> "SeriesTable":
        """Return the rows in which a label has a value."""
        rows = [row for row, found in enumerate(self.column(label)) if found == value]
        columns = {name: [column[row] for row in rows] for name, column in self.labels.items()}
        return SeriesTable(self.name, columns, self.values[rows])

    def samples(self) -> Iterator[Sample]:
        """Return the rows one by one."""
        for row, value in enumerate(self.values.tolist()):
            yield Sample(self.name, {name: column[row] for name, column in self.labels.items()}, value)
