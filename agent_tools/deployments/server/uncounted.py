"""Which figures a server's ``/metrics`` does not hold, and why. A series that should be there and is not is unknown, not 0.

LMCache exports a series from its first event on, so no series usually means that nothing happened. The exceptions are series that
LMCache counts together with others, or that ``/status`` shows to have counted: something between us and LMCache drops these.
"""

from collections.abc import Iterator

from agent_tools.deployments.snapshot import NO_REQUEST_HITS

from .exposition import Exposition
from .versions import Release

_FIGURES = {
    "lookups": ("total_requests",),
    "unregistered": ("unregistered_lookups",),
    "no_layout": ("layoutless_lookups",),
    "l2_loads": ("l2_load_gb_per_second",),
    "tokens": (
        "tokens.requested",
        "tokens.hit_l1",
        "tokens.hit_l2",
        "hit_rate_percent",
        "tokens_served",
        "tokens_computed",
        "memory_saved_mb",
        "memory_savings_percent",
    ),
}
"""The figures of `CacheMetrics` from a field of `Counters`, or from the tokens, if they have other names."""
_REQUESTED = "lmcache_mp_lookup_requested_tokens_total"
_LOOKUP = {
    "lmcache_mp_lookups_requests_total": "lookups",
    _REQUESTED: "tokens",
    "lmcache_mp_lookup_hit_l1_tokens_total": "tokens",
    "lmcache_mp_lookup_hit_l2_tokens_total": "tokens",
}
"""What each lookup counts, all at once, from LMCache 0.5.5 on, and the field that it makes."""
_LOOKUP_UP_TO_0_5_4 = {_REQUESTED: "tokens", "lmcache_mp_lookup_hit_tokens_total": "tokens"}
_DROPPED = (
    "/metrics has no {name}, although LMCache {version} counts it together with what is there: look for a proxy or a relabelling"
    " that drops it"
)


def uncounted(release: Release, exposition: Exposition, *, resident: int, splits: bool) -> dict[str, str]:
    """Return the figures that are not counted, and why.

    Args:
        release: The server's version.
        exposition: Its ``/metrics``.
        resident: Objects in its L1, from ``/status``.
        splits: Whether a chunk of each model has the same number of objects, so that hits in L2 follow from its loads.
    """
    found = dict.fromkeys(("cache_hits", "cache_misses"), NO_REQUEST_HITS)
    untested = f"LMCache {release.text} exports no such series (yet), and nobody has tested this version"
    if not release.known:
        found |= {figure: untested for field in exposition.absent for figure in _FIGURES.get(field, (field,))}
    if not release.counts_lookups:
        older = f"LMCache {release.text} does not count it; 0.5.5 and later do"
        by_tier = f"LMCache {release.text} counts hits of both tiers together: hits in L2 are in hit_l1 too"
        found |= dict.fromkeys(("total_requests", "short_prompts", "unregistered_lookups", "layoutless_lookups"), older)
        found |= {"by_model.hit_l2": by_tier, "by_tenant.hit_l2": by_tier} | ({} if splits else {"tokens.hit_l2": by_tier})
    for name, field in dropped(release, exposition, resident):
        why = _DROPPED.format(name=name, version=release.text) if release.known else untested
        found |= dict.fromkeys(_FIGURES.get(field, (field,)), why)
    return found


def dropped(release: Release, exposition: Exposition, resident: int) -> Iterator[tuple[str, str]]:
    """Yield each series that is not there although it must be, with the field of `Counters` (or ``tokens``) that it makes."""
    written, absent = exposition.counters.stored_chunks, exposition.absent
    together = _LOOKUP if release.counts_lookups else _LOOKUP_UP_TO_0_5_4
    if exposition.names & together.keys() or written > exposition.l2_loaded_objects:  # an engine looks up before it stores
        yield from ((name, field) for name, field in together.items() if name not in exposition.names)
    if "stored_chunks" in absent and resident:
        yield "lmcache_mp_l1_write_chunks_total", "stored_chunks"
    if "evictions" in absent and written > resident:  # whatever leaves L1 is counted as evicted
        yield "lmcache_mp_l1_evicted_chunks_total", "evictions"
    if "dropped_events" in absent and exposition.has_cache_metrics:  # the server exports it from its start
        yield "lmcache_mp_event_bus_dropped_events_total", "dropped_events"
