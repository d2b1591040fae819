"""What the serving engine in front of a cache measured itself."""

from typing import Annotated

from pydantic import Field

from .config import Frozen

Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]


class TimeToFirstToken(Frozen):
    """How long requests wait for their first token, milliseconds."""

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
    """Figures of a vLLM over one window, from its own ``/metrics``; requests count when they have ended."""

    seconds: Annotated[float, Field(ge=0)]
    """Length of the window, seconds; it may begin some seconds before or after the cache's."""
    lifetime: bool = False
    """True when the figures are totals since the engine started, because there was only one reading of it."""
    requests: Count
    """Requests that ended in the window."""
    ttft_ms: TimeToFirstToken | None = None
    """Time to first token; percentiles are interpolated within the buckets of vLLM's histogram. ``None`` without requests."""
    queue_ms: Milliseconds | None = None
    """Mean time from a request's arrival to the start of its prefill. **The load of a hit from LMCache is part of it.**"""
    prefill_ms: Milliseconds | None = None
    """Mean time in which the engine computed what was not cached."""
    decode_ms: Milliseconds | None = None
    """Mean time from the first token to the last."""
    prompt_tokens: Count
    """Of the prompts that ended."""
    computed_tokens: Count
    """Of these, computed."""
    own_cache_tokens: Count
    """Served by the engine's own prefix cache; LMCache counts these as hits too when it has them, without loading them."""
    lmcache_tokens: Count
    """Loaded from LMCache."""
    preemptions: Count = 0
    """Requests put back because the engine's KV memory was full."""
    running: Count = 0
    """Requests under way now."""
    waiting: Count = 0
    """Requests that wait now because the engine has no room for them; those that wait for their load are not counted."""
    kv_usage_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    """Share of the engine's own KV memory in use now, percent."""

    @property
    def own_cache_share(self) -> float:
        """Share of the prompt tokens that the engine's own prefix cache served."""
        return self.own_cache_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class EngineSpeed(Frozen):
    """How long an engine takes for the parts of a time to first token, fitted to its own metrics; seconds."""

    per_request: Annotated[float, Field(ge=0)]
    """What every request takes, whatever its length."""
    per_computed_token: Annotated[float, Field(ge=0)]
    """More, for each prompt token that is computed."""
    per_loaded_token: Annotated[float, Field(ge=0)] | None
    """More, for each prompt token that is loaded from LMCache; ``None`` while nothing was loaded."""
    requests: Count
    """How many requests it is fitted to."""
    intervals: Count
    """Between how many readings."""

    def __str__(self) -> str:
        load = "not known yet" if self.per_loaded_token is None else f"{1e6 * self.per_loaded_token:.0f} us to load"
        return f"{1e6 * self.per_computed_token:.0f} us to compute a token, {load}, {1e3 * self.per_request:.0f} ms a request"


class ExpectedTtft(Frozen):
    """Time to first token of the observed requests, by the model of the cache and the engine's own speed, without queueing."""

    now: TimeToFirstToken
    """With the settings in force."""
    then: TimeToFirstToken
    """With the proposed settings."""
    speed: EngineSpeed
    """What it rests on."""
