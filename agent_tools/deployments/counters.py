"""What a cache counts since its process started."""

from dataclasses import dataclass

Labels = tuple[str, str]
"""(model name, tenant)"""


@dataclass(frozen=True)
class TokenCounters:
    """Lookup counters of one model and tenant, in tokens, since the process started."""

    requested: int = 0
    hit_l1: int = 0
    hit_l2: int = 0


@dataclass(frozen=True)
class Counters:
    """Totals since the process started, summed over label sets; chunks unless said otherwise. All never go down."""

    lookups: int = 0
    short_prompts: int = 0
    stored_chunks: int = 0
    evictions: int = 0
    failed_stores: int = 0
    dropped_events: int = 0
    evicted_followed: int = 0
    """Evicted chunks whose fate LMCache followed for five minutes: a sample, see ``--metrics-sample-rate``."""
    evicted_needed: int = 0
    """Of these, asked for again within two minutes of their eviction."""
    l2_loads_failed: int = 0
    """Chunks found in L2 that could not be loaded because L1 had no room."""
    l2_loads_lost: int = 0
    """Chunks found in L2 whose load brought nothing."""
    l2_evictions: int = 0
    """Chunks that L2 evicted."""
    l2_loads: int = 0
    """Loads from L2 that were timed."""
    l2_load_speeds: float = 0.0
    """Sum of their speeds, GB/s."""
    eviction_ticks: int = 0
    """Wake-ups of the L1 eviction thread, about one a second."""
    lookup_calls: int = 0
    """Lookup RPCs timed; only with ``--transport grpc``."""
    lookup_seconds: float = 0.0
    """Time spent in those calls, waiting for the L2 prefetch included."""
    missed_lookups: int = 0
    """Lookups that found nothing; counted by engines only."""
