"""Symptoms of the traffic: hits that the requests themselves rule out, under any cache setting."""

import numpy as np

from agent_tools.models import Rung, Severity, Symptom, SymptomCode
from agent_tools.recommender.observation import Ints, Observation

from .owners import large, owners
from .rule import ENOUGH_CHUNKS, ENOUGH_LOOKUPS, NOTICEABLE, enough, figure

LARGE_TAILS = 0.25
"""Smallest share of the prompt tokens in incomplete chunks that is reported. With 256 tokens per chunk, 1-12 % is usual."""
LONG = 8
"""Fewest chunks of a long request. Long requests usually share a prefix with an earlier one."""
EARLY = 1
"""Most chunks that a request shares with any earlier request if its prompt diverges early."""
MOST = 0.9
"""Share of the long requests that must diverge early."""


def no_data(seen: Observation) -> Symptom | None:
    """Report that there were too few lookups to judge the cache, or that nothing counts what they asked for."""
    metrics, lookups = seen.metrics, seen.lookups
    uncounted = metrics.unavailable.get("tokens.requested")
    if uncounted is not None and not metrics.tokens.requested and lookups:
        return Symptom(
            code=SymptomCode.NO_DATA,
            severity=Severity.MEDIUM,
            summary=f"Nothing says how many tokens the {lookups:,} lookups asked for, so no hit rate is known: {uncounted}",
            evidence=(figure("lookups (lookups_requests)", lookups, "lookups"),),
        )
    of_use = metrics.tokens.requested or metrics.short_prompts or metrics.unregistered_lookups or metrics.layoutless_lookups
    if enough(lookups, metrics, seen.config.chunk_size) and of_use:
        return None
    if lookups is None:
        chunks = metrics.tokens.requested // (seen.config.chunk_size or 1)
        return Symptom(
            code=SymptomCode.NO_DATA,
            severity=Severity.INFO,
            summary=f"{chunks:,} chunks requested in {metrics.window.seconds:.0f} s are too few to judge; at least"
            f" {ENOUGH_CHUNKS} are needed, because this version of LMCache does not count lookups. Observe for longer",
            evidence=(figure("chunks requested (lookup_requested_tokens)", chunks, "chunks"),),
        )
    return Symptom(
        code=SymptomCode.NO_DATA,
        severity=Severity.INFO,
        summary=f"{lookups} lookups are too few to judge (in {seen.metrics.window.span}); at least {ENOUGH_LOOKUPS} are needed."
        " Observe for longer",
        evidence=(figure("lookups (lookups_requests)", lookups, "lookups"),),
    )


def short_prompts(seen: Observation) -> Symptom | None:
    """Report that most prompts are shorter than one chunk. LMCache never caches these, whatever its size."""
    lookups, short = seen.metrics.total_requests or 0, seen.metrics.short_prompts or 0
    if lookups < ENOUGH_LOOKUPS or short / lookups < 0.5:
        return None
    chunk = seen.config.chunk_size
    return Symptom(
        code=SymptomCode.SHORT_PROMPTS,
        severity=Severity.MEDIUM,
        summary=f"{short:,} of {lookups:,} prompts are shorter than one chunk ({chunk} tokens), and LMCache never caches them;"
        " use smaller chunks",
        evidence=(figure("prompts shorter than a chunk (lookup_early_exit, empty_chunk_hashes)", short, "lookups"),),
    )


def nothing_to_reuse(seen: Observation) -> Symptom | None:
    """Report that requests share no prefixes. No size and no setting can help."""
    metrics = seen.metrics
    if not metrics.tokens.requested or not enough(seen.lookups, metrics, seen.config.chunk_size):
        return None
    if seen.curve is not None:
        ceiling = seen.curve.ceiling()
        if max(ceiling, metrics.tokens.hit_rate or 0.0) >= NOTICEABLE:  # a log with gaps can show fewer hits than LMCache counted
            return None
        evidence = (figure("token hit rate of an unbounded cache (access log)", ceiling, "share"),)
        summary = f"Only {ceiling:.1%} of the requested tokens repeat an earlier prefix: no cache setting can help"
    elif metrics.tokens.hit or metrics.evictions or metrics.failed_stores:
        return None
    else:
        evidence = (figure("tokens requested (lookup_requested_tokens)", metrics.tokens.requested, "tokens"),)
        summary = "There were no hits, although the server evicted and dropped nothing in the window: no prefix came twice"
    return Symptom(code=SymptomCode.NOTHING_TO_REUSE, severity=Severity.INFO, summary=summary, evidence=evidence, rung=seen.rung)


def prefix_diverges_early(seen: Observation) -> Symptom | None:
    """Report that nearly all long prompts diverge from every earlier one in the first chunks, as with a timestamp in front.

    If it is not so of all prompts together, it can be so of one tenant's or one model's.
    """
    depths, sizes = seen.shared_depths, seen.window_chunks
    if depths is None:
        return None
    whole = _diverging(depths, sizes, "prompts", "any earlier prompt")
    if whole is not None:
        return whole
    parts = ((one, one.mine[seen.in_window] > 0) for one in owners(seen) if large(one.prompts))
    found = (_diverging(depths[mine], sizes[mine], f"prompts of {one}", "an earlier one") for one, mine in parts)
    return next((symptom for symptom in found if symptom is not None), None)


def _diverging(depths: Ints, sizes: Ints, whose: str, earlier: str) -> Symptom | None:
    """Return the finding for prompts of these sizes, of which so many leading chunks were in an earlier one."""
    long = sizes >= LONG
    if long.sum() < ENOUGH_LOOKUPS:
        return None
    early = float((depths[long] <= EARLY).mean())
    if early < MOST:
        return None
    return Symptom(
        code=SymptomCode.PREFIX_DIVERGES_EARLY,
        severity=Severity.LOW,
        summary=f"{early:.0%} of the {int(long.sum()):,} {whose} with {LONG} chunks or more share at most {EARLY} chunk with"
        f" {earlier}. If they should share a system prompt or a history, something in front of it (a timestamp, a request"
        " id, another template) makes each prompt new: move it to the end",
        evidence=(
            figure("long prompts that diverge in their first two chunks (access log)", early, "share"),
            figure("median chunks shared with an earlier prompt (access log)", float(np.median(depths[long])), "chunks"),
            figure("median chunks of the long prompts (access log)", float(np.median(sizes[long])), "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


LAZY = ", and lmcache.mp.lazy_offload, which stores a chunk only when the engine's own cache is about to evict it"


def under_stored(seen: Observation) -> Symptom | None:
    """Report that engines compute chunks but do not store them, so that requests miss them repeatedly."""
    metrics, chunk = seen.metrics, seen.config.chunk_size
    missed = (metrics.tokens.requested - metrics.tokens.hit) / chunk if chunk else 0
    offered = (metrics.stored_chunks or 0) + (metrics.failed_stores or 0)
    if metrics.stored_chunks is None or missed < ENOUGH_LOOKUPS or offered > 0.5 * missed:
        return None
    if (metrics.incomplete_chunks or 0) > 0.5 * (metrics.resident_chunks or 0):  # they are there, in part: another finding
        return None
    return Symptom(
        code=SymptomCode.UNDER_STORED,
        severity=Severity.HIGH,
        summary=f"Requests missed {missed:,.0f} chunks, but the engines sent only {offered:,} to the server to store; check the"
        f" connector's settings (kv_role, save_decode_cache{LAZY if seen.own_cache_size else ''})",
        evidence=(
            figure("chunks missed (lookup_requested_tokens - lookup_hit_tokens)", missed, "chunks"),
            figure("chunks sent to be stored (l1_write_chunks + l1_allocation_failure_chunks)", offered, "chunks"),
        ),
    )


def tails_not_cached(seen: Observation) -> Symptom | None:
    """Report that many prompt tokens lie in the last, incomplete chunk. LMCache never caches an incomplete chunk."""
    if seen.log is None or not seen.in_window.any():
        return None
    tokens = int(seen.log.tokens[seen.in_window].sum())
    tails = tokens - int(seen.log.chunks_per_request[seen.in_window].sum()) * seen.log.chunk_size
    if not tokens or tails / tokens < LARGE_TAILS:
        return None
    return Symptom(
        code=SymptomCode.TAILS_NOT_CACHED,
        severity=Severity.LOW,
        summary=f"{tails / tokens:.0%} of the prompt tokens lie in incomplete chunks (fewer than {seen.log.chunk_size} tokens),"
        " which LMCache never caches; a smaller chunk size would cache more of them",
        evidence=(figure("tokens in incomplete chunks (access log)", tails, "tokens"),),
        rung=Rung.ACCESS_LOG,
    )
