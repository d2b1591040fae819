"""The prompt tokens that each of several engines admitted between successive readings."""

from collections.abc import Sequence
from itertools import pairwise

from agent_tools.prediction.engine_split import Admission

from .engine_reading import EngineReading


def admissions_of(readings: Sequence[EngineReading]) -> list[Admission]:
    """Return what each engine admitted between readings; empty for a single engine. Engines are numbered as in the last reading.

    Args:
        readings: Readings of all engines together, oldest first.
    """
    if not readings or not readings[-1].engines:
        return []
    found = []
    for number, engine in enumerate(readings[-1].engines):
        mine = [one for reading in readings for one in reading.engines if one.name == engine.name]
        for before, after in pairwise(mine):
            tokens = int(after.counters.admitted_tokens - before.counters.admitted_tokens)
            if after.follows(before) and tokens > 0:
                found.append(Admission(after.taken_at, number, tokens))
    return found
