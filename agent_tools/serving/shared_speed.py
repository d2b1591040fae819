"""The speed of an engine whose requests wait for each other, from the time between their first tokens.

A request's own time then holds the work for others. A fit to it would take that work for time that every request takes, whatever
its length. But such an engine gives the next first token as soon as the work for it is done. So over a stretch of many first
tokens, the time that passes is the time for all tokens that were computed in it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .engine_reading import EngineReading
from .engine_window import difference

WAITING = 1.5
"""Mean time to first token, in units of the mean time between first tokens, from which requests wait for each other."""
STRETCH = 5
"""First tokens in a stretch, in the same unit: the more requests overlap, the more of them are only partly within a stretch."""
EXPLAINED = 0.5
"""Least share of the time that computed tokens have to explain. If it is less, arrivals set the pace, not work."""

_Floats = npt.NDArray[np.float64]


class SharedSpeed(NamedTuple):
    """What a request takes of the engine's time, in seconds."""

    per_request: float
    per_computed_token: float
    requests: int
    intervals: int


def shared_speed(engines: Iterable[Sequence[tuple[EngineReading, EngineReading]]]) -> SharedSpeed | None:
    """Return the speed of engines whose requests wait for each other; ``None`` if they do not, or if there are too few requests.

    Args:
        engines: For each engine, its successive readings in pairs, oldest first.
    """
    of_each = [found for pairs in engines if len(found := _first_tokens(pairs))]
    if not of_each:
        return None
    seconds, requests, computed, ttft = np.concatenate(of_each).sum(axis=0)
    events = sum(map(len, of_each))
    if ttft <= WAITING * seconds or seconds <= 0:
        return None
    length = math.ceil(STRETCH * ttft / seconds * events / requests)
    if events < 2 * length:
        return None
    stretches = np.concatenate([_sums(found, length) for found in of_each])
    weight = 1 / np.sqrt(stretches[:, 1:2])
    (per_request, per_token), *_ = np.linalg.lstsq(stretches[:, 1:3] * weight, stretches[:, 0] * weight[:, 0], rcond=None)
    per_token = min(float(per_token), seconds / max(computed, 1.0))
    if per_token * computed < EXPLAINED * seconds:
        return None
    return SharedSpeed(max(float(per_request), 0.0), per_token, int(requests), events)


def _first_tokens(pairs: Sequence[tuple[EngineReading, EngineReading]]) -> _Floats:
    """Return (events, 4): seconds since the last first token, first tokens, computed tokens, and the sum of their times.

    The engine cannot have worked longer for first tokens than these took, so that is the most seconds: the rest it was idle.
    """
    found: list[list[float]] = []
    since: float | None = None
    for before, after in pairs:
        counted = difference(before, after)
        if counted.first_tokens:
            if since is not None:
                passed = min(after.taken_at - since, counted.ttft_seconds)
                found.append([passed, counted.first_tokens, counted.computed_tokens, counted.ttft_seconds])
            since = after.taken_at
        elif found:  # some engines count a request's tokens later than its first token
            found[-1][2] += counted.computed_tokens
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def _sums(rows: _Floats, length: int) -> _Floats:
    """Return the sums of every `length` successive rows."""
    totals = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
    sums: _Floats = totals[length:] - totals[:-length]
    return sums
