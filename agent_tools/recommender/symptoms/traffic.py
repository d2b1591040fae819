"""Symptoms of the traffic: what the requests themselves rule out, however the cache is set."""

import numpy as np

from agent_tools.models import Rung, Severity, Symptom, SymptomCode
from agent_tools.recommender.observation import Observation

from .rule import ENOUGH_LOOKUPS, NOTICEABLE, figure

LARGE_TAILS = 0.25
"""Share of the prompt tokens in started chunks that is worth a word; 1-12 % is usual at 256 tokens."""
LONG = 8
"""Chunks of a request from which on a shared beginning is to be expected,"""
EARLY = 1
"""and how many chunks it has in common with an earlier one, at most, when its prompt differs early."""
MOST = 0.9
"""Share of the long requests that has to differ early."""


def no_data(seen: Observation) -> Symptom | None:
    """Too few lookups to say anything."""
    lookups = seen.metrics.total_requests or 0
    if lookups >= ENOUGH_LOOKUPS and (seen.metrics.tokens.requested or seen.metrics.short_prompts):
        return None
    return Symptom(
        code=SymptomCode.NO_DATA,
        severity=Severity.INFO,
        summary=f"{lookups} lookups in {seen.metrics.window.seconds:.0f} s are too few to judge; {ENOUGH_LOOKUPS} is the least",
        evidence=(figure("lookups (lookups_requests)", lookups, "lookups"),),
    )


def short_prompts(seen: Observation) -> Symptom | None:
    """Most prompts are shorter than one chunk and can never be cached; no memory helps."""
    lookups, short = seen.metrics.total_requests or 0, seen.metrics.short_prompts or 0
    if lookups < ENOUGH_LOOKUPS or short / lookups < 0.5:
        return None
    chunk = seen.config.chunk_size
    return Symptom(
        code=SymptomCode.SHORT_PROMPTS,
        severity=Severity.MEDIUM,
        summary=f"{short} of {lookups} prompts are shorter than one chunk ({chunk} tokens) and can never be cached;"
        " use smaller chunks",
        evidence=(figure("prompts shorter than a chunk (lookup_early_exit, empty_chunk_hashes)", short, "lookups"),),
    )


def nothing_to_reuse(seen: Observation) -> Symptom | None:
    """The requests share no prefixes: no size and no setting can help."""
    metrics = seen.metrics
    if not metrics.tokens.requested or (metrics.total_requests or 0) < ENOUGH_LOOKUPS:
        return None
    if seen.curve is not None:
        ceiling = seen.curve.ceiling()
        if max(ceiling, metrics.tokens.hit_rate or 0.0) >= NOTICEABLE:  # a log with gaps can say less than was hit
            return None
        evidence = (figure("token hit rate of an unbounded cache (access log)", ceiling, "share"),)
        summary = f"only {ceiling:.1%} of the tokens repeat an earlier prefix: no cache setting can help"
    elif metrics.tokens.hit or metrics.evictions or metrics.failed_stores:
        return None
    else:
        evidence = (figure("tokens requested (lookup_requested_tokens)", metrics.tokens.requested, "tokens"),)
        summary = "nothing was found although nothing was evicted or dropped in the window: no prefix came twice"
    return Symptom(code=SymptomCode.NOTHING_TO_REUSE, severity=Severity.INFO, summary=summary, evidence=evidence, rung=seen.rung)


def prefix_diverges_early(seen: Observation) -> Symptom | None:
    """Nearly all long prompts differ from each earlier one in their first chunks, as a timestamp or an id in front makes them."""
    depths, sizes = seen.shared_depths, seen.window_chunks
    long = sizes >= LONG
    if depths is None or long.sum() < ENOUGH_LOOKUPS:
        return None
    early = float((depths[long] <= EARLY).mean())
    if early < MOST:
        return None
    return Symptom(
        code=SymptomCode.PREFIX_DIVERGES_EARLY,
        severity=Severity.LOW,
        summary=f"{early:.0%} of the {int(long.sum())} prompts of {LONG} chunks or more have at most {EARLY} chunk in common with"
        " any earlier one; if they are meant to share a system prompt or a history, something in front of it (a timestamp, a"
        " request id, another template) makes each of them new: move it to the end",
        evidence=(
            figure("long prompts that differ in their first two chunks (access log)", early, "share"),
            figure("median chunks shared with an earlier prompt (access log)", float(np.median(depths[long])), "chunks"),
            figure("median chunks of these prompts (access log)", float(np.median(sizes[long])), "chunks"),
        ),
        rung=Rung.ACCESS_LOG,
    )


def under_stored(seen: Observation) -> Symptom | None:
    """Engines compute chunks and do not store them, so they are missed again and again."""
    metrics, chunk = seen.metrics, seen.config.chunk_size
    missed = (metrics.tokens.requested - metrics.tokens.hit) / chunk if chunk else 0
    offered = (metrics.stored_chunks or 0) + (metrics.failed_stores or 0)
    if metrics.stored_chunks is None or missed < ENOUGH_LOOKUPS or offered > 0.5 * missed:
        return None
    return Symptom(
        code=SymptomCode.UNDER_STORED,
        severity=Severity.HIGH,
        summary=f"{missed:.0f} chunks were missed and only {offered} were handed over to be stored: the engines keep what they"
        " compute to themselves; look at the connector's settings (kv_role, save_decode_cache)",
        evidence=(
            figure("chunks missed (lookup_requested_tokens - lookup_hit_tokens)", missed, "chunks"),
            figure("chunks handed over (l1_write_chunks + l1_allocation_failure_chunks)", offered, "chunks"),
        ),
    )


def tails_not_cached(seen: Observation) -> Symptom | None:
    """Much of the prompts lies in their last, started chunk, which is never cached."""
    if seen.log is None or not seen.in_window.any():
        return None
    tokens = int(seen.log.tokens[seen.in_window].sum())
    tails = tokens - int(seen.log.chunks_per_request[seen.in_window].sum()) * seen.log.chunk_size
    if not tokens or tails / tokens < LARGE_TAILS:
        return None
    return Symptom(
        code=SymptomCode.TAILS_NOT_CACHED,
        severity=Severity.LOW,
        summary=f"{tails / tokens:.0%} of the prompt tokens lie in started chunks of {seen.log.chunk_size} tokens, which are"
        " never cached; a smaller chunk size would cache more of them",
        evidence=(figure("tokens in started chunks (access log)", tails, "tokens"),),
        rung=Rung.ACCESS_LOG,
    )
