"""Conversion of a hit rate to time and money: the cost of loading or computing a token, and what a higher hit rate saves.

KV bytes per token are measured, never computed from a model's shape (such formulas have been 7x wrong for users). Prefill speed
is best measured at the engine too. `ComputeBound` estimates it without a measurement and names its assumptions. Every result
lists its `assumptions`.
"""

from typing import Annotated

from pydantic import Field

from agent_tools.models import CacheMetrics, Gain
from agent_tools.models.config import MB_IN_A_GB, Frozen
from agent_tools.models.cost import Economics, KvSize, Positive, Prefill, Prices, Range, Saving, Traffic
from agent_tools.models.engine import EngineSpeed
from agent_tools.workload.access_log import AccessLog

GB = 1e9
"""Bytes in the GB of a bandwidth (GB/s), as vendors count. Memory is priced in GB of 2**30 bytes."""
HOUR = 3600.0


class ComputeBound(Frozen):
    """A prefill limited by arithmetic alone (Mooncake, FAST'25, eq. 1 and 2): the speed to assume without a measurement.

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
    """Prefix length at which a token is computed, in tokens (``p``)."""
    gpus: Annotated[int, Field(gt=0)]
    """Number of GPUs that work on one prompt together."""
    peak_flops: Positive
    """Peak of one GPU in the model's data type, floating-point operations per second (A800: 312e12, H800: 989e12)."""
    utilization: Annotated[float, Field(gt=0, le=1)]
    """Share of the peak that is reached (MFU): 0.4 to 0.6 in practice; Mooncake's eq. 2 assumes 1."""

    @property
    def flops_per_token(self) -> float:
        """Return the floating-point operations of one prompt token (Mooncake, FAST'25, eq. 1)."""
        return self.layers * (self.attention * self.prefix_tokens * self.width + self.linear * self.width**2)

    def prefill(self) -> Prefill:
        """Return the resulting prefill speed."""
        return Prefill(
            tokens_per_second=self.gpus * self.peak_flops * self.utilization / self.flops_per_token,
            gpus=self.gpus,
            source=f"assumed to be compute-bound at {self.utilization:.0%} of {self.gpus} x {self.peak_flops / 1e12:.0f} TFLOP/s,"
            f" prefix of {self.prefix_tokens} tokens",
        )


def kv_size(metrics: CacheMetrics | None = None, log: AccessLog | None = None) -> KvSize | None:
    """Return the measured KV bytes of one token, preferring L1's own bytes; ``None`` if neither source has them."""
    if metrics is not None and metrics.kv_bytes_per_token:
        return KvSize(bytes_per_token=metrics.kv_bytes_per_token, source="measured: L1 bytes used / tokens resident")
    if log is not None and log.chunk_bytes:
        return KvSize(
            bytes_per_token=log.chunk_bytes / log.chunk_size,
            source="measured: shapes x dtypes of a chunk in the lookup-hash log, one KV rank",
        )
    return None


def measured_economics(speed: EngineSpeed | None, kv: KvSize | None) -> Economics | None:
    """Return the speeds that an engine showed, without prices; ``None`` if no time per computed token could be measured."""
    if speed is None or not speed.per_computed_token:
        return None
    load = speed.per_loaded_token
    return Economics(
        prefill=Prefill(
            tokens_per_second=1 / speed.per_computed_token, source=f"measured by the engine on {speed.requests} requests"
        ),
        l1_load_gb_per_second=kv.bytes_per_token / load / GB if kv is not None and load else None,
    )


def traffic_of(metrics: CacheMetrics) -> Traffic | None:
    """Return the traffic of a window per hour; ``None`` for a window of no length."""
    seconds = metrics.window.seconds
    if seconds <= 0:
        return None
    requests = metrics.total_requests
    return Traffic(
        tokens_per_hour=metrics.tokens.requested * HOUR / seconds,
        requests_per_hour=None if requests is None else requests * HOUR / seconds,
        source=f"the traffic continues as in the observed window of {seconds:.0f} s",
    )


def break_even_bandwidth(kv: KvSize, prefill: Prefill) -> float:
    """Return the load bandwidth, bytes per second, at which loading a prefix takes as long as computing it.

    Source: Mooncake, FAST'25, eq. 2. With slower storage, every hit makes time to first token worse.
    """
    return kv.bytes_per_token * prefill.tokens_per_second


def seconds_saved_per_token(prefill: Prefill, kv: KvSize | None, load_gb_per_second: float | None) -> float:
    """Return the seconds of time to first token that one hit token saves; negative if loading is slower than computing.

    Args:
        prefill: Speed of computing the token.
        kv: KV bytes per token.
        load_gb_per_second: Bandwidth of loading from the tier that holds the token. Without it, or without `kv`, loading is free.
    """
    loading = kv.bytes_per_token / (load_gb_per_second * GB) if kv is not None and load_gb_per_second is not None else 0.0
    return 1 / prefill.tokens_per_second - loading


def saving(
    gain: Gain,
    traffic: Traffic,
    economics: Economics,
    *,
    worth: Range | None = None,
    kv: KvSize | None = None,
    added_mb: float = 0.0,
) -> Saving:
    """Return what a difference in token hit rate saves per hour.

    Time to first token falls by ``1 / prefill - KV bytes per token / load bandwidth`` for each token that is now a hit. GPU time
    falls by ``GPUs / prefill``. The two can move apart: a slow load saves GPU time and costs latency.

    Args:
        gain: The difference in token hit rate, with its interval.
        traffic: The amount of traffic.
        economics: Speeds of the engine and of loading, and prices.
        worth: The difference with hits from L2 weighted by the time they save compared with hits from L1, if it is not `gain`.
        kv: KV bytes per token. Without it, loading is free.
        added_mb: L1 memory that the change adds, MB.
    """
    prefill, prices = economics.prefill, economics.prices
    plain = Range(lower=gain.lower, estimate=gain.estimate, upper=gain.upper)
    tokens, requests = traffic.tokens_per_hour, traffic.requests_per_hour
    ttft = (worth or plain).scaled(tokens * seconds_saved_per_token(prefill, kv, economics.l1_load_gb_per_second))
    gpu = plain.scaled(tokens * prefill.gpus / prefill.tokens_per_second)
    return Saving(
        tokens_per_hour=plain.scaled(tokens),
        gpu_seconds_per_hour=gpu,
        ttft_seconds_per_hour=ttft,
        ttft_ms_per_request=ttft.scaled(1000 / requests) if requests else None,
        break_even_gb_per_second=None if kv is None else break_even_bandwidth(kv, prefill) / GB,
        payback_hours=None if prices is None else payback_hours(added_mb, gpu.estimate, prices),
        net_benefit=None if prices is None else _net_benefit(gpu, added_mb, prices),
        assumptions=_assumptions(gain, traffic, prefill, kv, economics.l1_load_gb_per_second),
    )


def payback_hours(added_mb: float, gpu_seconds_per_hour: float, prices: Prices) -> float | None:
    """Return the hours until added memory (MB) is paid for by the GPU time it saves; ``None`` if it never is."""
    saved_per_hour = gpu_seconds_per_hour / HOUR * prices.gpu_hour
    if saved_per_hour <= 0:
        return None
    return max(memory_price(added_mb, prices), 0.0) / saved_per_hour


def memory_price(added_mb: float, prices: Prices) -> float:
    """Return the price of added memory (MB), in the currency of the prices. Memory given back is worth nothing."""
    return max(added_mb, 0.0) / MB_IN_A_GB * prices.memory_gb


def _net_benefit(gpu_seconds_per_hour: Range, added_mb: float, prices: Prices) -> Range:
    saved = gpu_seconds_per_hour.scaled(prices.gpu_hour / HOUR * prices.horizon_hours)
    return saved.shifted(-memory_price(added_mb, prices))


def _assumptions(gain: Gain, traffic: Traffic, prefill: Prefill, kv: KvSize | None, load: float | None) -> tuple[str, ...]:
    loading = (
        "loading a hit takes no time, because no load bandwidth or no KV size was given; time to first token is an upper bound"
        if load is None or kv is None
        else f"a hit is loaded at {load:.3g} GB/s, and loading does not overlap with computing"
    )
    size = () if kv is None else (f"KV of {kv.bytes_per_token:.0f} bytes a token ({kv.source})",)
    return (
        f"hit rate: {gain.method}",
        f"traffic: {traffic.source}, {traffic.tokens_per_hour:.4g} tokens per hour in whole chunks",
        f"prefill: {prefill.tokens_per_second:.4g} tokens/s on {prefill.gpus} GPUs ({prefill.source}), the same for every token",
        *size,
        loading,
        "time to first token excludes queueing; loading does not occupy the GPU",
    )
