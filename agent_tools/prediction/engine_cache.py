"""The serving engine's own prefix cache (L0), and what LMCache adds to it.

An engine matches each prompt against its own cache first, and asks LMCache for the whole prompt all the same. It loads only
what its own cache lacks. So LMCache saves ``max(0, hit in LMCache - hit in L0)`` tokens of a request, however high its own hit
rate is.

vLLM frees the blocks of a request tail first and evicts the least recently freed block. An LRU cache that touches chunks tail
first does the same, so the access log of LMCache also predicts L0. On a real vLLM 0.32 this model is off by 0.9 points of the
prompt tokens on average, with one client and with three (``benchmarks/results/engine_cache.md``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .engine_split import UNKNOWN, Admission, by_majority, divided, matched
from .hit_rate_curve import hits_at, hits_per_request
from .isolation import isolated
from .prefix_reuse import prefix_reuse
from .server_prediction import ServerPrediction

Chunks = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EngineCache:
    """What an engine's own cache of one size serves of a log, from an empty cache."""

    tokens: int
    """Size of the cache, tokens (vLLM: ``block_size x num_gpu_blocks``)."""
    hits: Chunks
    """(requests,) leading chunks of each request that the engine's own cache holds."""
    asked: int
    """Whole chunks of all requests."""
    error: float = 0.0
    """Distance between the modelled and the counted share of the window's prompt tokens, 0 to 1: how well the model explains it.
    Of several engines the mean, weighted by prompt tokens."""
    split: str = ""
    """How the requests were divided among several engines."""
    engine_of: Chunks | None = None
    """(requests,) number of the engine that each request is taken to have gone to; ``None`` for one engine."""

    @property
    def share(self) -> float:
        """Share of the whole-chunk prompt tokens that the engine's own cache serves, 0 to 1."""
        return self.hits.sum() / self.asked if self.asked else 0.0

    def saved(self, prediction: ServerPrediction) -> float:
        """Return the share of the whole-chunk prompt tokens that LMCache saves under a setting, mean over the eviction clocks."""
        if not self.asked:
            return 0.0
        beyond = [np.maximum(run.hit_chunks - self.hits, 0).sum() for run in prediction.runs]
        return float(np.mean(beyond) / self.asked)


def engine_caches(log: AccessLog, tokens: Sequence[int]) -> list[EngineCache]:
    """Return what engine caches of these sizes, in tokens, serve of a log.

    The log is of one engine: several engines have a cache each (`counted_engine_cache`). A started chunk is left out, since
    LMCache names whole chunks only; the room that generated tokens take is not modelled either.
    """
    asked = int(log.chunks_per_request.sum())
    return [EngineCache(size, hits_per_request(log, size / log.chunk_size * log.sampling_rate), asked) for size in tokens]


USABLE = np.linspace(1.0, 0.5, 26)
"""Shares of its size that an engine cache may hold of what is asked again: running requests and answers take the rest."""


@dataclass(frozen=True)
class CountedEngine:
    """One of the engines in front of a cache, and what it counted in a window."""

    size: int
    """Tokens that its own cache holds; 0 if it is off."""
    prompt_tokens: int = 0
    """Its prompt tokens; 0 if they are not known."""
    share: float | None = None
    """Share of its prompt tokens that its own cache served; ``None`` if it does not tell."""


def counted_engine_cache(
    log: AccessLog,
    engines: Sequence[CountedEngine],
    counted: npt.NDArray[np.bool_],
    admissions: Sequence[Admission] = (),
) -> EngineCache:
    """Return what the caches of all engines together serve of a log, each fitted to what its engine counted.

    Args:
        log: What was asked.
        engines: The engines.
        counted: (requests,) the requests of the window in which the engines counted.
        admissions: What the engines counted between readings; tells which engine had which request.
    """
    if len(engines) == 1:
        return _fitted(log, engines[0], counted)
    weights = [float(engine.prompt_tokens) for engine in engines]
    known = {way: matched(log, admissions, sticky=sticky) for way, sticky in WAYS.items()}
    ways = {way: divided(log, known[way], weights, sticky=sticky) for way, sticky in WAYS.items()}
    ways |= {way: by_majority(log, ways[way], len(engines)) for way, sticky in WAYS.items() if sticky}
    found = {way: _of_each(log, engines, counted, engine_of) for way, engine_of in ways.items()}
    way = min(found, key=lambda one: found[one].error)
    sure = float(log.tokens[counted & (known[way] != UNKNOWN)].sum() / max(int(log.tokens[counted].sum()), 1))
    return replace(found[way], split=f"{sure:.0%} of the prompt tokens by what each engine admitted, the rest {way}")


WAYS = {"with the engine that has their prefix": True, "to any engine": False}
"""How requests that no reading explains may have been divided -> whether they stick to an engine."""


def _of_each(
    log: AccessLog, engines: Sequence[CountedEngine], counted: npt.NDArray[np.bool_], engine_of: npt.NDArray[np.int64]
) -> EngineCache:
    hits, tokens, error = np.zeros(len(log), np.int64), 0, 0.0
    total = max(sum(engine.prompt_tokens for engine in engines), 1)
    for number, engine in enumerate(engines):
        mine = np.flatnonzero(engine_of == number)
        cache = _fitted(log.select(mine), engine, counted[mine])
        hits[mine], tokens = cache.hits, tokens + cache.tokens
        error += cache.error * engine.prompt_tokens / total
    return EngineCache(tokens, hits, int(log.chunks_per_request.sum()), error=error, engine_of=engine_of)


def _fitted(log: AccessLog, engine: CountedEngine, counted: npt.NDArray[np.bool_]) -> EngineCache:
    """Return the cache of one engine, at the usable size that explains best what it counted; at its full size without a count."""
    asked = int(log.chunks_per_request.sum())
    if not engine.size or not len(log):
        return EngineCache(engine.size, np.zeros(len(log), np.int64), asked, error=engine.share or 0.0)
    if engine.share is None or not counted.any():
        return engine_caches(log, [engine.size])[0]
    reuse, prompts = prefix_reuse(isolated(log)), max(int(log.tokens[counted].sum()), 1)
    per_token = log.sampling_rate / log.chunk_size
    tried = [hits_at(reuse, len(log), part * engine.size * per_token) for part in USABLE]
    errors = np.abs(np.array([hits[counted].sum() for hits in tried]) / per_token / prompts - engine.share)
    best = int(np.argmin(errors))
    return EngineCache(round(float(USABLE[best]) * engine.size), tried[best], asked, error=float(errors[best]))
