"""From hit rate to time and money: what a token costs to load or to compute, and what a higher hit rate saves.

KV bytes per token are measured, never computed from a model's shape (formulas have been 7x wrong for users). Prefill speed is
best measured at the engine too; `ComputeBound` is for when it is not, and names what it takes for granted. Every result says in
`assumptions` what it rests on.
"""

from typing import Annotated

from pydantic import Field

from agent_tools.models import CacheMetrics, Gain
from agent_tools.models.config import Frozen
from agent_tools.workload.access_log import AccessLog

Positive = Annotated[float, Field(gt=0)]

GB = 1e9
"""Bytes in the GB of a bandwidth (GB/s), as vendors count; memory is priced in GB of 2**30 bytes."""
HOUR = 3600.0
MB_IN_A_GB = 1024


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
    source: str
    """``measured ...`` or ``assumed ...``, in words."""


class ComputeBound(Frozen):
    """A prefill limited by arithmetic alone, as in Mooncake (FAST'25, eq. 1 and 2): a speed to assume when none was measured.

    A token costs ``layers x (attention x prefix_tokens x width + linear x width**2)`` floating-point operations.
    """

    layers: Annotated[int, Field(gt=0)]
    """Transformer layers (``l``; LLaMA3-70B: 80)."""
    width: Annotated[int, Field(gt=0)]
    """Model dimension (``d``; LLaMA3-70B: 8192)."""
    attention: Positive
    """Coefficient of the attention term (``a``; LLaMA3-70B: 4)."""
    linear: Positive
    """Coefficient of the projections and the MLP (``b``; LLaMA3-70B: 22)."""
    prefix_tokens: Annotated[int, Field(ge=0)]
    """Prefix length at which a token is computed (``p``)."""
    gpus: Annotated[int, Field(gt=0)]
    """GPUs that work on one prompt together."""
    peak_flops: Positive
    """Peak of one GPU in the model's data type, floating-point operations a second (A800: 312e12, H800: 989e12)."""
    utilization: Annotated[float, Field(gt=0, le=1)]
    """Share of the peak that is reached (MFU): 0.4 to 0.6 in practice; Mooncake's eq. 2 takes 1."""

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of one prompt token (Mooncake, FAST'25, eq. 1)."""
        return self.layers * (self.attention * self.prefix_tokens * self.width + self.linear * self.width**2)

    def prefill(self) -> Prefill:
        """The prefill speed that follows."""
        return Prefill(
            tokens_per_second=self.gpus * self.peak_flops * self.utilization / self.flops_per_token,
            gpus=self.gpus,
            source=f"assumed to be compute-bound at {self.utilization:.0%} of {self.gpus} x {self.peak_flops / 1e12:.0f} TFLOP/s,"
            f" prefix of {self.prefix_tokens} tokens",
        )


class Traffic(Frozen):
    """How much is asked of a cache."""

    tokens_per_hour: Annotated[float, Field(ge=0)]
    """Chunk-aligned prompt tokens looked up an hour: what a token hit rate is a share of."""
    requests_per_hour: Annotated[float, Field(ge=0)] | None
    """Lookups an hour; ``None`` when not known."""
    source: str
    """Where it was observed."""


class Prices(Frozen):
    """What an operator pays, in any one currency."""

    memory_gb: Positive
    """One GB (2**30 bytes) of the memory that would hold L1, bought once."""
    gpu_hour: Positive
    """One GPU for one hour."""


class Range(Frozen):
    """A figure with its 90 % interval."""

    lower: float
    """Lower end."""
    estimate: float
    """Most likely."""
    upper: float
    """Upper end."""


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
    assumptions: tuple[str, ...]
    """All that the figures rest on, one sentence each."""


def kv_size(metrics: CacheMetrics | None = None, log: AccessLog | None = None) -> KvSize | None:
    """Measured KV bytes of one token, L1's own bytes first; ``None`` when neither source has them."""
    if metrics is not None and metrics.kv_bytes_per_token:
        return KvSize(bytes_per_token=metrics.kv_bytes_per_token, source="measured: L1 bytes used / tokens resident")
    if log is not None and log.chunk_bytes:
        return KvSize(
            bytes_per_token=log.chunk_bytes / log.chunk_size,
            source="measured: shapes x dtypes of a chunk in the lookup-hash log, one KV rank",
        )
    return None


def traffic_of(metrics: CacheMetrics) -> Traffic | None:
    """What was asked in a window, an hour; ``None`` for a window of no length."""
    seconds = metrics.window.seconds
    if seconds <= 0:
        return None
    requests = metrics.total_requests
    return Traffic(
        tokens_per_hour=metrics.tokens.requested * HOUR / seconds,
        requests_per_hour=None if requests is None else requests * HOUR / seconds,
        source=f"traffic goes on as in the observed window of {seconds:.0f} s",
    )


def break_even_bandwidth(kv: KvSize, prefill: Prefill) -> float:
    """Load bandwidth, bytes a second, at which loading a prefix takes as long as computing it (Mooncake, FAST'25, eq. 2).

    Slower storage makes time to first token worse with every hit.
    """
    return kv.bytes_per_token * prefill.tokens_per_second


def saving(
    gain: Gain,
    traffic: Traffic,
    prefill: Prefill,
    *,
    kv: KvSize | None = None,
    load_bytes_per_second: float | None = None,
    added_mb: float = 0.0,
    prices: Prices | None = None,
) -> Saving:
    """What a difference of the token hit rate saves an hour.

    Time to first token falls by ``1 / prefill - KV bytes per token / load bandwidth`` for each token that is now a hit; GPU time
    by ``GPUs / prefill``. The two can move apart: a slow load saves GPU time and costs latency.

    Args:
        gain: The difference, with its interval.
        traffic: How much is asked.
        prefill: How fast it would be computed.
        kv: KV bytes per token.
        load_bytes_per_second: Measured bandwidth of loading KV from the cache to the GPU; needs `kv`. Without it loading is free.
        added_mb: L1 that the change adds, MB.
        prices: For the pay-back.

    Raises:
        ValueError: If a load bandwidth is not positive, or given without `kv`.
    """
    load = _load_seconds_per_token(kv, load_bytes_per_second)
    ttft_per_token = 1 / prefill.tokens_per_second - (load or 0.0)
    gpu_per_token = prefill.gpus / prefill.tokens_per_second
    tokens = traffic.tokens_per_hour
    requests = traffic.requests_per_hour
    ttft = _range(gain, tokens * ttft_per_token)
    gpu = _range(gain, tokens * gpu_per_token)
    return Saving(
        tokens_per_hour=_range(gain, tokens),
        gpu_seconds_per_hour=gpu,
        ttft_seconds_per_hour=ttft,
        ttft_ms_per_request=_range(gain, tokens * ttft_per_token / requests * 1000) if requests else None,
        break_even_gb_per_second=None if kv is None else break_even_bandwidth(kv, prefill) / GB,
        payback_hours=None if prices is None else payback_hours(added_mb, gpu.estimate, prices),
        assumptions=_assumptions(gain, traffic, prefill, kv, load),
    )


def payback_hours(added_mb: float, gpu_seconds_per_hour: float, prices: Prices) -> float | None:
    """Hours until added memory, MB, has been paid for by the GPU time it saves; ``None`` when it never is."""
    saved_per_hour = gpu_seconds_per_hour / HOUR * prices.gpu_hour
    if saved_per_hour <= 0:
        return None
    return max(added_mb, 0.0) / MB_IN_A_GB * prices.memory_gb / saved_per_hour


def _load_seconds_per_token(kv: KvSize | None, load_bytes_per_second: float | None) -> float | None:
    if load_bytes_per_second is None:
        return None
    if kv is None:
        raise ValueError("a load bandwidth says nothing without KV bytes per token; measure them at the cache (kv_size)")
    if not load_bytes_per_second > 0:
        raise ValueError(f"a load bandwidth must be a positive number of bytes a second, got {load_bytes_per_second}")
    return kv.bytes_per_token / load_bytes_per_second


def _range(gain: Gain, per_share: float) -> Range:
    """A gain's interval times a figure, which may be negative: the ends then change places."""
    ends = sorted((gain.lower * per_share, gain.upper * per_share))
    return Range(lower=ends[0], estimate=gain.estimate * per_share, upper=ends[1])


def _assumptions(gain: Gain, traffic: Traffic, prefill: Prefill, kv: KvSize | None, load: float | None) -> tuple[str, ...]:
    loading = (
        f"a hit is loaded at {kv.bytes_per_token / load / GB:.3g} GB/s, not overlapped with computing"
        if kv is not None and load is not None
        else "loading a hit takes no time: no load bandwidth was given, so time to first token is an upper bound"
    )
    size = () if kv is None else (f"KV of {kv.bytes_per_token:.0f} bytes a token ({kv.source})",)
    return (
        f"hit rate: {gain.method}",
        f"traffic: {traffic.source}, {traffic.tokens_per_hour:.4g} tokens an hour in whole chunks",
        f"prefill: {prefill.tokens_per_second:.4g} tokens/s on {prefill.gpus} GPUs ({prefill.source}), alike for every token",
        *size,
        loading,
        "time to first token is without queueing; loading does not occupy the GPU",
    )
