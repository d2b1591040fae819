"""From the hits of each request to its time to first token, at the speed that the engine showed; without queueing."""

import numpy as np
import numpy.typing as npt

from agent_tools.models.engine import EngineSpeed, TimeToFirstToken

Floats = npt.NDArray[np.float64]


def seconds_to_first_token(speed: EngineSpeed, tokens: Floats, hit_tokens: Floats) -> Floats:
    """Return the seconds to the first token of each request, in the shape of `hit_tokens`.

    Args:
        speed: Speed of the engine. If the engine has not loaded anything yet, loading is assumed to take no time.
        tokens: (requests,) prompt tokens.
        hit_tokens: (..., requests) prompt tokens found in the cache.
    """
    computed = np.maximum(tokens - hit_tokens, 1.0)  # the last token of a prompt is always computed
    seconds: Floats = speed.per_request + speed.per_computed_token * computed + (speed.per_loaded_token or 0.0) * hit_tokens
    return seconds


def time_to_first_token(seconds: Floats) -> TimeToFirstToken:
    """Return mean and percentiles of all given seconds, in milliseconds."""
    p50, p95, p99 = (1e3 * float(np.percentile(seconds, percent)) for percent in (50, 95, 99))
    return TimeToFirstToken(mean=1e3 * float(seconds.mean()), p50=p50, p95=p95, p99=p99)
