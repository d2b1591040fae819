"""The counters of a cache since its process started."""

import sys
from dataclasses import dataclass

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
        self._counts: dict[Labels, dict[str, int]] = {}
        self._models, self._tenants = _Names(MOST_MODELS), _Names(MOST_TENANTS)

    def add(self, model: str, tenant: str, field: str, tokens: int) -> None:
        """Add tokens to one field of `TokenCounters`."""
        counts = self._counts.setdefault((self._models.listed(model), self._tenants.listed(tenant)), {})
        counts[field] = counts.get(field, 0) + tokens

    @property
    def tokens(self) -> dict[Labels, TokenCounters]:
        """The sums."""
        return {labels: TokenCounters(**counts) for labels, counts in self._counts.items()}

    @property
    def unlisted(self) -> Unlisted:
        """How many names stand under ``None``."""
        return Unlisted(len(self._models.unlisted), len(self._tenants.unlisted))


class _Names:
    """The first names of a kind; the rest are only counted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._listed: dict[str, str] = {}
        self.unlisted: set[str] = set()

    def listed(self, name: str) -> str | None:
        if name not in self._listed:
            if len(self._listed) >= self._most:
                self.unlisted.add(name)
                return None
            self._listed[name] = sys.intern(name)  # one string for thousands of readings
        return self._listed[name]
