"""Which of a log's requests were counted between two readings of the counters."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from agent_tools.deployments.snapshot import Served

from .observation import Floats, Ints

NEAR = 8
"""Largest number of requests that may be logged and not yet counted at a reading, or the other way round."""


@dataclass(frozen=True)
class Counted:
    """The requests that were counted between two readings, and what was counted."""

    first: int
    """Place of the first request in the log."""
    last: int
    """Place of the first request after them."""
    served: Served


def counted_between(times: Floats, asked: Ints, served: Sequence[Served]) -> list[Counted]:
    """Return the requests that were counted between each two readings.

    A request is logged a few milliseconds before or after it is counted. If a reading falls between the two, the log's time puts
    the request on one side of the reading, and the counter puts its hits on the other. Therefore the counted tokens divide the
    requests, as long as the log and the counter agree on their sum. Otherwise the times do.

    Args:
        times: (requests,) Unix times at which the requests were logged, ascending.
        asked: (requests,) tokens that each asked for, in whole chunks.
        served: What was counted between successive readings.
    """
    places = _places(times, asked, served) if served else ()
    return [Counted(int(first), int(last), one) for (first, last), one in zip(places, served, strict=True)]


def _places(times: Floats, asked: Ints, served: Sequence[Served]) -> Ints:
    """Return (readings, 2) the places of the first request between two readings, and of the first after them."""
    by_time = np.searchsorted(times, [(one.start, one.end) for one in served]).astype(np.int64)
    if any(before.end != after.start for before, after in pairwise(served)):
        return by_time
    logged = np.concatenate([[0], np.cumsum(asked)])
    counted = np.concatenate([[0], np.cumsum([one.requested for one in served])])
    first, last = int(by_time[0, 0]), int(by_time[-1, 1])
    starts = range(max(first - NEAR, 0), min(first + NEAR, len(times)) + 1)
    start = min(starts, key=lambda place: (_apart(logged, logged[place] + counted), abs(place - first)))
    places = _nearest(logged, logged[start] + counted)
    apart = abs(logged[places[-1]] - logged[start] - counted[-1])
    agree = abs(int(places[-1]) - last) <= NEAR and apart <= asked.max(initial=0)
    return np.column_stack([places[:-1], places[1:]]) if agree else by_time


def _apart(logged: Ints, counted: Ints) -> float:
    """Return by how many tokens the log and the counter are apart at all readings together, each in its nearest place."""
    return float(np.abs(logged[_nearest(logged, counted)] - counted).sum())


def _nearest(logged: Ints, counted: Ints) -> Ints:
    """Return the places in the ascending `logged` whose values are nearest to the counted ones."""
    above = np.searchsorted(logged, counted).clip(1, len(logged) - 1)
    return np.asarray(above - (counted - logged[above - 1] < logged[above] - counted))
