"""What a hit is worth: speeds and prices that only the operator knows, and what a higher hit rate saves by them."""

from typing import Annotated

from pydantic import Field

from .config import Frozen

Positive = Annotated[float, Field(gt=0)]


class KvSize(Frozen):
    """KV bytes of one token, and where the figure is from."""

    bytes_per_token: Positive
    """Bytes that one token's keys and values take, over all layers."""
    source: str
    """Where it was measured."""


class Prefill(Frozen):
    """How fast the engine computes prompt tokens that are not cached."""

    tokens_per_second: Positive
    """Prompt tokens a second of one engine (all its GPUs together), at the prompt lengths of the traffic."""
    gpus: Annotated[int, Field(gt=0)] = 1
    """GPUs of that engine."""
    source: str = "stated by the operator"
    """``measured ...`` or ``assumed ...``, in words."""


class Prices(Frozen):
    """What an operator pays, in any one currency."""

    memory_gb: Positive
    """One GB (2**30 bytes) of the memory that would hold L1, bought once."""
    gpu_hour: Positive
    """One GPU for one hour."""
    horizon_hours: Positive = 8760.0
    """Hours in which memory has to pay for itself; a year unless said otherwise."""


class Economics(Frozen):
    """What the operator knows of a cache's engine and prices; without it, hits of all tiers count alike and memory is free."""

    prefill: Prefill
    """Speed of computing what is not cached; best measured at the engine."""
    l1_load_gb_per_second: Positive | None = None
    """Bandwidth of loading KV from L1 into the engine, GB/s (1e9); ``None``: loading takes no time."""
    l2_load_gb_per_second: Positive | None = None
    """Bandwidth of loading KV from L2; ``None``: as LMCache measured it in the window, else as from L1."""
    prices: Prices | None = None
    """For net benefit and pay-back."""


class Traffic(Frozen):
    """How much is asked of a cache."""

    tokens_per_hour: Annotated[float, Field(ge=0)]
    """Chunk-aligned prompt tokens looked up an hour: what a token hit rate is a share of."""
    requests_per_hour: Annotated[float, Field(ge=0)] | None
    """Lookups an hour; ``None`` when not known."""
    source: str
    """Where it was observed."""


class Range(Frozen):
    """A figure with its 90 % interval."""

    lower: float
    """Lower end."""
    estimate: float
    """Most likely."""
    upper: float
    """Upper end."""

    def scaled(self, factor: float) -> "Range":
        """The range times a factor, which may be negative: the ends then change places."""
        ends = sorted((self.lower * factor, self.upper * factor))
        return Range(lower=ends[0], estimate=self.estimate * factor, upper=ends[1])

    def shifted(self, by: float) -> "Range":
        """The range with the same added to all of it."""
        return Range(lower=self.lower + by, estimate=self.estimate + by, upper=self.upper + by)


class Saving(Frozen):
    """What a difference of the token hit rate is worth; negative where it costs."""

    tokens_per_hour: Range
    """Prompt tokens an hour that are loaded instead of computed."""
    gpu_seconds_per_hour: Range
    """GPU time an hour that prefill no longer takes, seconds: throughput."""
    ttft_seconds_per_hour: Range
    """Time to first token saved an hour, summed over all requests, seconds: latency, without queueing."""
    ttft_ms_per_request: Range | None
    """The same for the mean request, milliseconds; ``None`` when requests an hour are not known."""
    break_even_gb_per_second: float | None
    """Load bandwidth below which a hit takes longer than computing it, GB/s; ``None`` when KV bytes per token are not known."""
    payback_hours: float | None
    """Hours until the added memory has paid for itself in GPU time, at the estimate; ``None`` without prices, or if never."""
    net_benefit: Range | None
    """GPU time saved over the horizon of the prices, less the added memory, in their currency; ``None`` without prices."""
    assumptions: tuple[str, ...]
    """All that the figures rest on, one sentence each."""
