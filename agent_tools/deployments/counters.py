"""The counters of a cache since its process started."""

import sys
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from agent_tools.wire.distinct import Distinct, Int64
from agent_tools.wire.series_table import Floats, SeriesTable

Labels = tuple[str | None, str | None]
"""(model name, tenant); ``None`` stands for all the names that are not listed, see `TokensByLabels`."""
MOST_TENANTS = 500
MOST_MODELS = 50


@dataclass(frozen=True, slots=True)
class TokenCounters:
    """Lookup counters of one model and tenant, in tokens, since the process started."""

    requested: int = 0
    hit_l1: int = 0
    hit_l2: int = 0


@dataclass(frozen=True)
class Counters:
    """Totals since the process started, summed over label sets, in chunks unless stated otherwise. No counter ever decreases."""

    lookups: int = 0
    short_prompts: int = 0
    stored_chunks: int = 0
    evictions: int = 0
    failed_stores: int = 0
    dropped_events: int = 0
    evicted_followed: int = 0
    """A sample of the evicted chunks, which LMCache followed for five minutes. See ``--metrics-sample-rate``."""
    evicted_needed: int = 0
    """Followed chunks that a request asked for again within two minutes of their eviction."""
    l2_loads_failed: int = 0
    """Chunks in L2 that the server could not load because L1 had no room."""
    l2_loads_lost: int = 0
    """Chunks that L2 found but did not deliver."""
    l2_evictions: int = 0
    """Chunks that L2 evicted."""
    l2_loads: int = 0
    """Number of timed loads from L2."""
    l2_load_speeds: float = 0.0
    """Sum of the speeds of the timed loads, GB/s."""
    eviction_ticks: int = 0
    """Wake-ups of the L1 eviction thread, about one a second."""
    lookup_calls: int = 0
    """Number of timed lookup RPCs. Only ``--transport grpc`` times them."""
    lookup_seconds: float = 0.0
    """Time of the timed lookup RPCs in seconds, including the wait for the L2 prefetch."""
    unregistered: int = 0
    """Lookups that ended at once because no engine registered that model with that world size."""
    no_layout: int = 0
    """Lookups that ended at once because the registered model had no layout for its object groups."""
    l2_hit_tokens: int = 0
    """Tokens of the hits in L2, where the server does not count hits by tier (LMCache up to 0.5.4). They are also in `hit_l1`."""
    missed_lookups: int = 0
    """Lookups without a hit. Only in-process LMCache counts them."""


@dataclass(frozen=True, slots=True)
class Unlisted:
    """How many names were summed under ``None``."""

    models: int = 0
    tenants: int = 0


class TokensByLabels:
    """Token counters by model and tenant in one pass, for any number of names.

    Clients choose these names. The first `MOST_TENANTS` tenants and `MOST_MODELS` models keep their names; the figures of all
    others are summed under ``None``, so totals stay exact. A server lists its series in the order in which they began. A new
    name therefore never displaces a listed one, and each sum only grows.
    """

    def __init__(self) -> None:
        """Start without any figures."""
        self._models, self._tenants = _Names(MOST_MODELS), _Names(MOST_TENANTS)
        self._shape = MOST_MODELS + 1, MOST_TENANTS + 1  # the last ones are for all the others
        self._present = np.zeros(self._shape, np.bool_)
        self._sums: dict[str, Floats] = {}

    def add(self, field: str, table: SeriesTable) -> None:
        """Add the tokens of series to one field of `TokenCounters`."""
        sums = self._sums.setdefault(field, np.zeros(self._shape))
        models, tenants = self._models.numbers(table, "model_name"), self._tenants.numbers(table, "cache_salt")
        places = np.ravel_multi_index((models, tenants), self._shape)
        np.add.at(sums.reshape(-1), places, table.values)
        self._present.reshape(-1)[places] = True

    @property
    def tokens(self) -> dict[Labels, TokenCounters]:
        """The sums."""
        models, tenants = self._models.by_number, self._tenants.by_number
        return {
            (models[model], tenants[tenant]): TokenCounters(
                **{field: int(sums[model, tenant]) for field, sums in self._sums.items()}
            )
            for model, tenant in np.argwhere(self._present).tolist()
        }

    @property
    def unlisted(self) -> Unlisted:
        """How many names stand under ``None``."""
        return Unlisted(self._models.unlisted, self._tenants.unlisted)


class _Names:
    """The first names of a kind have a number each; the rest are only counted, and share the last number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers: dict[str, int] = {}
        self._all = Distinct()

    def numbers(self, table: SeriesTable, label: str) -> Int64:
        """Return the number of each name in a column."""
        names = table.column(label)
        self._all.add(table.hashes(label))
        if len(self._numbers) < self._most:
            new = [name for name in dict.fromkeys(names) if name not in self._numbers][: self._most - len(self._numbers)]
            self._numbers |= {sys.intern(name): number for number, name in enumerate(new, start=len(self._numbers))}
        return np.fromiter(map(self._numbers.get, names, repeat(self._most)), np.int64, len(names))

    @property
    def by_number(self) -> list[str | None]:
        """The names by their numbers; ``None`` for all the others."""
        return [*self._numbers, *repeat(None, self._most + 1 - len(self._numbers))]

    @property
    def unlisted(self) -> int:
        return len(self._all) - len(self._numbers)
