"""The time that an engine takes for each part of a time to first token, fitted to successive readings of its own metrics.

vLLM sums up over ended requests: the prompt tokens that it computed, the time of the prefill, and the time before the prefill, in
which a hit is loaded from LMCache. Each interval between two readings gives one equation for each of the two times.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from agent_tools.models.engine import EngineSpeed

from .engine_reading import EngineCounters, EngineReading
from .engine_window import difference
from .shared_speed import shared_speed

LEAST_REQUESTS = 10
LEAST_INTERVALS = 5
"""A fit to fewer requests or intervals is left to chance."""
NEEDED = frozenset({"computed_tokens", "own_cache_tokens", "queue_seconds", "prefill_seconds"})
"""Counters that the fit needs; SGLang does not have them all."""

_Floats = npt.NDArray[np.float64]


def fitted_speed(readings: Sequence[EngineReading]) -> EngineSpeed | None:
    """Return the speed that an engine showed; ``None`` if it served too little.

    Several engines are taken to be equally fast. If requests wait for each other, the times are what a request takes of the
    engine's time: see `shared_speed`. Loads go on beside that, so they take none of it.

    Args:
        readings: The readings of the engines, oldest first. If a process restarted, only the readings since then count.
    """
    if readings and NEEDED & readings[-1].missing.keys():
        return None
    engines = _by_engine(_same_processes(readings))
    shared = shared_speed(engines)
    if shared is None:
        return _of_own_times([pair for pairs in engines for pair in pairs])
    loaded = readings[-1].counters.lmcache_tokens
    return EngineSpeed(**shared._asdict(), per_loaded_token=0.0 if loaded else None)


def _of_own_times(pairs: Sequence[tuple[EngineReading, EngineReading]]) -> EngineSpeed | None:
    """Return the speed over the intervals in which no request waited for room; ``None`` if there are too few."""
    counted = [difference(a, b) for a, b in pairs if not a.waiting and not b.waiting]
    ended = [one for one in counted if one.requests]
    if len(ended) < LEAST_INTERVALS or sum(one.requests for one in ended) < LEAST_REQUESTS:
        return None
    requests, computed, prompt = (_column(ended, name) for name in ("requests", "computed_tokens", "prompt_tokens"))
    queue, prefill = _column(ended, "queue_seconds"), _column(ended, "prefill_seconds")
    # Tokens that were neither computed nor in the engine's own cache were loaded. All are counted when the request ends, like the
    # times.
    loaded = np.maximum(prompt - computed - _column(ended, "own_cache_tokens"), 0.0)
    first = sum(one.first_tokens for one in counted)
    elsewhere = (sum(one.ttft_seconds - one.queue_seconds - one.prefill_seconds for one in counted)) / first if first else 0.0
    waiting, per_loaded = _line(requests, loaded, queue)
    computing, per_computed = _line(requests, computed, prefill)
    return EngineSpeed(
        per_request=max(waiting + computing + elsewhere, 0.0),
        per_computed_token=per_computed,
        per_loaded_token=per_loaded if loaded.any() else None,
        requests=int(requests.sum()),
        intervals=len(ended),
    )


def _same_processes(readings: Sequence[EngineReading]) -> list[tuple[EngineReading, EngineReading]]:
    pairs = [(a, b) for a, b in pairwise(readings) if b.follows(a)]
    return [pair for pair in pairs if _starts(pair[1]) == _starts(readings[-1])]


def _starts(reading: EngineReading) -> list[tuple[str, float | None]]:
    return [(one.name, one.process_start) for one in reading.each]


def _by_engine(pairs: Sequence[tuple[EngineReading, EngineReading]]) -> list[list[tuple[EngineReading, EngineReading]]]:
    """Return the pairs of readings of each single engine."""
    found: dict[str, list[tuple[EngineReading, EngineReading]]] = {}
    for before, after in pairs:
        earlier = {one.name: one for one in before.each}
        for one in after.each:
            found.setdefault(one.name, []).append((earlier[one.name], one))
    return list(found.values())


def _column(counted: Sequence[EngineCounters], name: str) -> _Floats:
    return np.array([getattr(one, name) for one in counted], dtype=np.float64)


def _line(requests: _Floats, tokens: _Floats, seconds: _Floats) -> tuple[float, float]:
    """Return (seconds per request, seconds per token), neither below 0.

    The fit is by least squares and weights each interval by its number of requests.
    """
    weight = 1 / np.sqrt(requests)
    rows = np.stack([requests, tokens], axis=1) * weight[:, None]
    a_request, a_token = np.linalg.lstsq(rows, seconds * weight, rcond=None)[0]
    if a_token < 0 or not tokens.any():
        return float(seconds.sum() / requests.sum()), 0.0
    if a_request < 0:
        return 0.0, float((rows[:, 1] @ (seconds * weight)) / (rows[:, 1] @ rows[:, 1]))
    return float(a_request), float(a_token)
