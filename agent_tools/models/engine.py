"""Figures that the serving engine in front of a cache measures itself."""

from typing import Annotated

from pydantic import Field

from .config import Frozen

Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]


class TimeToFirstToken(Frozen):
    """How long requests wait for their first token, in milliseconds."""

    mean: Milliseconds
    """Mean."""
    p50: Milliseconds
    """Median."""
    p95: Milliseconds
    """95th percentile."""
    p99: Milliseconds
    """99th percentile."""

    def __str__(self) -> str:
        return f"{self.mean:,.0f} ms (p50 {self.p50:,.0f}, p95 {self.p95:,.0f}, p99 {self.p99:,.0f})"


class EngineMetrics(Frozen):
    """Figures of the serving engines in front of a cache over one window, from their own ``/metrics``.

    A request counts when it has ended. Figures of several engines are sums and means over all their requests.
    """

    seconds: Annotated[float, Field(ge=0)]
    """Length of the window, seconds. It may begin some seconds before or after the cache's window."""
    lifetime: bool = False
    """True if the figures are totals since the engine started, because there was only one reading, or because it restarted."""
    name: str = ""
    """Address of the engine; empty for several."""
    requests: Count
    """Number of requests that ended in the window."""
    ttft_ms: TimeToFirstToken | None = None
    """Time to first token. The percentiles are interpolated within the buckets of the histogram. ``None`` without requests."""
    queue_ms: Milliseconds | None = None
    """Mean time from a request's arrival to the start of its prefill. **It includes the load of a hit from LMCache.**"""
    prefill_ms: Milliseconds | None = None
    """Mean time in which the engine computed tokens that were not cached."""
    decode_ms: Milliseconds | None = None
    """Mean time from the first token to the last."""
    prompt_tokens: Count
    """Prompt tokens of the requests that ended."""
    computed_tokens: Count | None = None
    """Prompt tokens that the engine computed; ``None`` if its metrics do not tell."""
    own_cache_size_tokens: Count | None = None
    """Tokens that the engine's own prefix cache holds; 0 if it is off, ``None`` if unknown. Of several engines the sum."""
    own_cache_tokens: Count | None = None
    """Prompt tokens that the engine's own prefix cache served. LMCache counts them as hits too if it has them, without loading
    them. ``None`` if the engine's metrics do not tell."""
    lmcache_tokens: Count | None = None
    """Prompt tokens loaded from LMCache; ``None`` if the engine's metrics do not tell."""
    preemptions: Count = 0
    """Requests that the engine put back because its KV memory was full."""
    running: Count = 0
    """Requests in progress now."""
    waiting: Count = 0
    """Requests that wait now for room in the engine. Requests that wait for their load are not counted."""
    kv_usage_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    """Share of the engine's own KV memory in use now, percent; of several engines the largest."""
    missing: tuple[str, ...] = ()
    """Figures that the engine's metrics lack, by the name of the metric."""
    doubt: str | None = None
    """Why these figures say nothing about what this cache saves, e.g. because the engine uses another cache."""
    engines: tuple["EngineMetrics", ...] = ()
    """The figures of each engine, if there are several."""

    @property
    def own_cache_share(self) -> float | None:
        """Return the share of the prompt tokens that the engine's own prefix cache served, in [0, 1]; ``None`` if unknown."""
        return self._share(self.own_cache_tokens)

    @property
    def saved_share(self) -> float | None:
        """Return the share of the prompt tokens that LMCache saved: loaded from it instead of computed.

        ``None`` if the engine's metrics do not tell, or if they cannot be this cache's (`doubt`).
        """
        return None if self.doubt else self._share(self.lmcache_tokens)

    @property
    def computed_share(self) -> float | None:
        """Return the share of the prompt tokens that the engine computed, in [0, 1]; ``None`` if unknown."""
        return self._share(self.computed_tokens)

    def _share(self, tokens: int | None) -> float | None:
        # A request that still runs may be counted in its parts and not in its prompt.
        return None if tokens is None else min(tokens / self.prompt_tokens, 1.0) if self.prompt_tokens else 0.0


class EngineSpeed(Frozen):
    """The time that an engine takes for each part of a time to first token, in seconds, fitted to its own metrics.

    If requests wait for each other all the time, it is what each takes of the engine's time, with loads going on beside it.
    """

    per_request: Annotated[float, Field(ge=0)]
    """Seconds for every request, whatever its length."""
    per_computed_token: Annotated[float, Field(ge=0)]
    """Additional seconds for each prompt token that is computed."""
    per_loaded_token: Annotated[float, Field(ge=0)] | None
    """Additional seconds for each prompt token that is loaded from LMCache; ``None`` if nothing was loaded yet."""
    requests: Count
    """Number of requests in the fit."""
    intervals: Count
    """Number of intervals between readings in the fit."""

    def __str__(self) -> str:
        load = "not known yet" if self.per_loaded_token is None else f"{1e6 * self.per_loaded_token:.0f} us to load"
        return f"{1e6 * self.per_computed_token:.0f} us to compute a token, {load}, {1e3 * self.per_request:.0f} ms a request"


class ExpectedTtft(Frozen):
    """Predicted time to first token of the observed requests, from the cache model and the engine's speed.

    The wait for other requests is taken to stay in proportion to the rest.
    """

    now: TimeToFirstToken
    """With the settings in force, milliseconds."""
    then: TimeToFirstToken
    """With the proposed settings, milliseconds."""
    speed: EngineSpeed
    """The engine speed that the prediction uses."""
