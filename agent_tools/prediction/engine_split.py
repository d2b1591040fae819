"""Which of several engines each request of a log went to. LMCache's log of lookups names no engine.

Request ids do not help: each engine draws them at random. But each engine counts the tokens of the prompts that it admits, and
asks LMCache at that moment. Between two readings a second apart an engine admits few prompts, and mostly only one set of the
lookups just before adds up to its count. What no reading explains is divided in two ways: prompts stay with the engine that has
their prefix, or go to any. The way that better explains what the engines' own caches served is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_tools.compiled import compiled
from agent_tools.workload.access_log import AccessLog

Ints = npt.NDArray[np.int64]
UNKNOWN = -1
"""The engine of a request that no reading explains."""
LOOK_BACK = 10.0
"""Longest time from a lookup to the reading that counts its prompt as admitted, seconds."""
MOST_LOOKUPS = 24
"""Latest unexplained lookups that are tried for one count."""
MOST_SUMS = 20_000
"""Sums of lookups that are tried for one count."""


@dataclass(frozen=True)
class Admission:
    """Prompt tokens that one engine admitted between two readings."""

    time: float
    """Unix time of the later reading, seconds."""
    engine: int
    tokens: int


def matched(log: AccessLog, admissions: Sequence[Admission], *, sticky: bool) -> Ints:
    """Return the engine of each request by the counts of admitted tokens, shape (requests,); `UNKNOWN` where none explains it.

    Args:
        log: What was asked.
        admissions: What each engine admitted.
        sticky: Whether, of lookups that add up equally well, those go to an engine whose prefix it had before.
    """
    found, holder = np.full(len(log), UNKNOWN, np.int64), np.full(max(log.unique_chunks, 1), UNKNOWN, np.int64)
    middle = log.offsets[:-1] + (np.maximum(log.chunks_per_request, 1) - 1) // 2

    def stranger(request: int, engine: int) -> int:
        had = holder[log.chunk_ids[middle[request]]] if sticky and log.chunks_per_request[request] else UNKNOWN
        return 0 if had == engine else 1 if had == UNKNOWN else 2

    for one in sorted(admissions, key=lambda admission: admission.time):
        first, last = np.searchsorted(log.timestamps, (one.time - LOOK_BACK, one.time))
        free = [r for r in range(int(first), int(last)) if found[r] == UNKNOWN][-MOST_LOOKUPS:]
        mine = _adding_up(one.tokens, sorted(free, key=lambda r: stranger(r, one.engine)), log.tokens)
        found[mine] = one.engine
        for request in mine:
            holder[log.chunk_ids[log.offsets[request] : log.offsets[request + 1]]] = one.engine
    return found


def by_majority(log: AccessLog, found: Ints, engines: int) -> Ints:
    """Return the engine that had most requests with the first half of each prompt, shape (requests,).

    Prompts of equal length that begin at the same time may be taken for each other; later ones of the same prefix tell.
    """
    votes = np.zeros((max(log.unique_chunks, 1), engines), np.int64)
    owner = np.repeat(found, log.chunks_per_request)
    np.add.at(votes, (log.chunk_ids[owner != UNKNOWN], owner[owner != UNKNOWN]), 1)
    settled = found.copy()
    for request in np.flatnonzero(log.chunks_per_request):
        middle = log.chunk_ids[log.offsets[request] + (log.chunks_per_request[request] - 1) // 2]
        if votes[middle].any():
            settled[request] = int(np.argmax(votes[middle]))
    return settled


def _adding_up(target: int, requests: Sequence[int], tokens: Ints) -> list[int]:
    """Return requests whose tokens add up to the target, the first ones if there is a choice; empty if there are none."""
    sums: dict[int, tuple[int, ...]] = {0: ()}
    for request in requests:
        for total, chosen in list(sums.items()):
            more = total + int(tokens[request])
            if more <= target and more not in sums:
                sums[more] = (*chosen, request)
        if target in sums or len(sums) > MOST_SUMS:
            break
    return list(sums.get(target, ()))


def divided(log: AccessLog, known: Ints, weights: Sequence[float], *, sticky: bool) -> Ints:
    """Return an engine for every request, shape (requests,).

    Args:
        log: What was asked.
        known: (requests,) the engine of each request, or `UNKNOWN`.
        weights: Share of the prompt tokens that each engine had, or any figures in proportion.
        sticky: Whether a prompt goes to the engine that had at least half of it last. Otherwise, and for new prompts, the engine
            takes it that is furthest behind its share.
    """
    shares = np.asarray(weights, np.float64)
    shares = shares / shares.sum() if shares.sum() else np.full(len(shares), 1 / len(shares))
    return _divided(log.chunk_ids, log.offsets, log.tokens, known, shares, log.unique_chunks, sticky)


@compiled
def _divided(
    chunk_ids: npt.NDArray[np.int32],
    offsets: Ints,
    tokens: Ints,
    known: Ints,
    shares: npt.NDArray[np.float64],
    chunks: int,
    sticky: bool,
) -> Ints:
    found = known.copy()
    holder = np.full(chunks, -1, np.int64)
    given = np.zeros(len(shares), np.float64)
    total = 0.0
    for r in range(len(tokens)):
        start, end = offsets[r], offsets[r + 1]
        engine = found[r]
        if engine < 0 and sticky and end > start:
            engine = holder[chunk_ids[start + (end - start - 1) // 2]]
        total += tokens[r]
        if engine < 0:
            engine = np.argmax(shares * total - given)
        given[engine] += tokens[r]
        found[r] = engine
        for i in range(start, end):
            holder[chunk_ids[i]] = engine
    return found
