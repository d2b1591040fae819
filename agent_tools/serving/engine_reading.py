"""One reading of an engine's metrics: its counters at one instant. Several engines in front of one cache make one reading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the process started. No counter ever decreases."""

    requests: float = 0
    """Number of requests that ended."""
    prompt_tokens: float = 0
    """Prompt tokens of the requests that ended."""
    computed_tokens: float = 0
    """Prompt tokens computed by prefill."""
    queue_seconds: float = 0
    """Time from arrival to the start of the prefill, including the load from LMCache."""
    prefill_seconds: float = 0
    decode_seconds: float = 0
    first_tokens: float = 0
    """Number of requests that had their first token."""
    ttft_seconds: float = 0
    own_cache_tokens: float = 0
    lmcache_tokens: float = 0
    admitted_tokens: float = 0
    """Prompt tokens of the requests that were admitted: those that the engine looked up in its own cache."""
    preemptions: float = 0


COUNTERS = tuple(one.name for one in fields(EngineCounters))


@dataclass(frozen=True)
class EngineReading:
    """One reading of ``/metrics``, of one engine or of several together."""

    taken_at: float
    """Unix time, seconds."""
    process_start: float | None
    """Unix time at which the process started, seconds; ``None`` if the page does not say."""
    counters: EngineCounters
    ttft_buckets: Mapping[float, float]
    """Upper bound, seconds -> number of requests with a first token within it, since the process started."""
    running: int
    waiting: int
    """Requests that wait for room. Requests that wait for a load are left out if vLLM distinguishes them."""
    kv_usage: float | None
    """Share of the engine's own KV memory in use, 0 to 1; of several engines the largest."""
    own_cache_size: int | None = None
    """Tokens that the engine's own prefix cache holds; 0 if it is off, ``None`` if unknown. Of several engines the sum."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Counters that the page does not have -> the metric that would be it. These counters are 0 in `counters`."""
    name: str = ""
    """Address of the engine, and its number if several engines answer there."""
    engines: tuple["EngineReading", ...] = ()
    """The readings that this one is the sum of, one for each engine; empty for a single engine."""

    @property
    def each(self) -> tuple["EngineReading", ...]:
        """Return the readings of the single engines."""
        return self.engines or (self,)

    def follows(self, earlier: "EngineReading") -> bool:
        """Return whether this reading is of the same processes as an earlier reading, with no counter decreased."""
        if self.engines or earlier.engines:
            before = {one.name: one for one in earlier.engines}
            return (
                self.engines != ()
                and before.keys() == {one.name for one in self.engines}
                and (all(one.follows(before[one.name]) for one in self.engines))
            )
        same = self.process_start == earlier.process_start and self.missing == earlier.missing
        return same and all(getattr(self.counters, name) >= getattr(earlier.counters, name) for name in COUNTERS)


def together(engines: Sequence[EngineReading]) -> EngineReading:
    """Return the reading of several engines: the sum of their counters, and the readings themselves in `engines`."""
    if len(engines) == 1:
        return engines[0]
    sizes, usage = [one.own_cache_size for one in engines], [one.kv_usage for one in engines if one.kv_usage is not None]
    starts = [one.process_start for one in engines]
    buckets: dict[float, float] = {}
    for one in engines:
        for bound, count in one.ttft_buckets.items():
            buckets[bound] = buckets.get(bound, 0.0) + count
    return EngineReading(
        taken_at=max(one.taken_at for one in engines),
        # Totals of several processes reach back as far as the first of them does.
        process_start=None if None in starts else min(start for start in starts if start is not None),
        counters=EngineCounters(**{name: sum(getattr(one.counters, name) for one in engines) for name in COUNTERS}),
        ttft_buckets=buckets,
        running=sum(one.running for one in engines),
        waiting=sum(one.waiting for one in engines),
        kv_usage=max(usage) if usage else None,
        own_cache_size=None if None in sizes else sum(size for size in sizes if size is not None),
        missing={counter: metric for one in engines for counter, metric in one.missing.items()},
        engines=tuple(engines),
    )
