"""The value of a hit: speeds and prices that the operator states, and what a higher hit rate saves."""

from typing import Annotated

from pydantic import Field

from .config import Frozen

Positive = Annotated[float, Field(gt=0)]


class KvSize(Frozen):
    """KV bytes of one token, and the source of the figure."""

    bytes_per_token: Positive
    """Bytes of one token's keys and values, over all layers."""
    source: str
    """Where the figure was measured."""


class Prefill(Frozen):
    """The speed at which the engine computes prompt tokens that are not cached."""

    tokens_per_second: Positive
    """Prompt tokens that one engine (all its GPUs together) computes per second, at the prompt lengths of the traffic."""
    gpus: Annotated[int, Field(gt=0)] = 1
    """Number of GPUs of this engine."""
    source: str = "stated by the operator"
    """Where the figure comes from: ``measured ...`` or ``assumed ...``, in words."""


class Prices(Frozen):
    """What the operator pays, in any one currency."""

    memory_gb: Positive
    """Price of one GB (2**30 bytes) of the memory for L1, paid once."""
    gpu_hour: Positive
    """Price of one GPU for one hour."""
    horizon_hours: Positive = 8760.0
    """Hours in which the memory has to pay for itself. Default: one year."""


class Economics(Frozen):
    """What the operator knows about the engine and its prices.

    Without economics, hits of all tiers count the same and memory is free.
    """

    prefill: Prefill
    """Speed of computing tokens that are not cached. Best measured at the engine."""
    l1_load_gb_per_second: Positive | None = None
    """Bandwidth of loading KV from L1 into the engine, GB/s (1e9 bytes). ``None``: loading takes no time."""
    l2_load_gb_per_second: Positive | None = None
    """Bandwidth of loading KV from L2, GB/s. ``None``: as LMCache measured it in the window, otherwise the same as from L1."""
    prices: Prices | None = None
    """Prices, for net benefit and pay-back time."""


class Traffic(Frozen):
    """The amount of traffic that a cache sees."""

    tokens_per_hour: Annotated[float, Field(ge=0)]
    """Chunk-aligned prompt tokens looked up per hour. A token hit rate is a share of these."""
    requests_per_hour: Annotated[float, Field(ge=0)] | None
    """Lookups per hour; ``None`` if unknown."""
    source: str
    """Where the traffic was observed."""


class Range(Frozen):
    """A figure with its 90 % interval."""

    lower: float
    """Lower end of the interval."""
    estimate: float
    """Most likely value."""
    upper: float
    """Upper end of the interval."""

    def scaled(self, factor: float) -> "Range":
        """Return the range times a factor. A negative factor swaps the two ends."""
        ends = sorted((self.lower * factor, self.upper * factor))
        return Range(lower=ends[0], estimate=self.estimate * factor, upper=ends[1])

    def shifted(self, by: float) -> "Range":
        """Return the range with `by` added to all three values."""
        return Range(lower=self.lower + by, estimate=self.estimate + by, upper=self.upper + by)

    def widened(self, by: float) -> "Range":
        """Return the range with both ends moved outwards by `by`, which must not be negative."""
        return Range(lower=self.lower - by, estimate=self.estimate, upper=self.upper + by)


class Saving(Frozen):
    """The value of a difference in token hit rate. A negative figure is a cost."""

    tokens_per_hour: Range
    """Prompt tokens per hour that are loaded instead of computed."""
    gpu_seconds_per_hour: Range
    """Throughput: GPU seconds per hour that prefill no longer takes."""
    ttft_seconds_per_hour: Range
    """Latency: seconds of time to first token saved per hour, summed over all requests, without queueing."""
    ttft_ms_per_request: Range | None
    """Time to first token saved for the mean request, milliseconds; ``None`` if the requests per hour are unknown."""
    break_even_gb_per_second: float | None
    """Load bandwidth below which loading a hit takes longer than computing it, GB/s; ``None`` if the KV bytes per token are
    unknown."""
    payback_hours: float | None
    """Hours until the added memory has paid for itself in GPU time, at the estimate; ``None`` without prices, or if it never
    does."""
    net_benefit: Range | None
    """GPU time saved over the prices' horizon, less the added memory, in the prices' currency; ``None`` without prices."""
    assumptions: tuple[str, ...]
    """The assumptions behind the figures, one sentence each."""
