"""The serving engine's own prefix cache (L0), and what LMCache adds to it.

An engine matches each prompt against its own cache first, and asks LMCache for the whole prompt all the same. It loads only
what its own cache lacks. So LMCache saves ``max(0, hit in LMCache - hit in L0)`` tokens of a request, however high its own hit
rate is.

vLLM frees the blocks of a request tail first and evicts the least recently freed block. An LRU cache that touches chunks tail
first does the same, so the access log of LMCache also predicts L0. On a real vLLM 0.32 this model was within 0.5 to 1.6 points of
the prompt tokens that the engine counted, with one client.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

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

    The log is of one engine: several engines have a cache each. A started chunk is left out, since LMCache names whole chunks
    only; the room that generated tokens take is not modelled either.
    """
    asked = int(log.chunks_per_request.sum())
    return [EngineCache(size, hits_per_request(log, size / log.chunk_size * log.sampling_rate), asked) for size in tokens]


USABLE = np.linspace(1.0, 0.5, 26)
"""Shares of its size that an engine cache may hold of what is asked again: running requests and answers take the rest."""


def fitted_engine_cache(log: AccessLog, tokens: int, counted: npt.NDArray[np.bool_], share: float) -> EngineCache:
    """Return the engine cache whose usable size explains best what the engine counted.

    Args:
        log: What was asked, of one engine.
        tokens: Size of the engine's own cache, tokens.
        counted: (requests,) the requests of the window in which the engine counted.
        share: Share of the window's prompt tokens that the engine's own cache served, as the engine counted.
    """
    reuse, prompts = prefix_reuse(isolated(log)), max(int(log.tokens[counted].sum()), 1)
    per_token = log.sampling_rate / log.chunk_size
    tried = [hits_at(reuse, len(log), part * tokens * per_token) for part in USABLE]
    served = np.array([hits[counted].sum() for hits in tried]) / per_token / prompts
    best = int(np.argmin(np.abs(served - share)))
    return EngineCache(round(float(USABLE[best]) * tokens), tried[best], int(log.chunks_per_request.sum()))
