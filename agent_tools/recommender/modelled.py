"""The observed cache in the model's terms, and what the model says other settings would have given on the same requests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agent_tools.errors import WorkloadError
from agent_tools.models import MB, CacheConfig, ConfigUpdate, EvictionPolicy, Gain, L2Adapter
from agent_tools.models.config import DEFAULT_TENANT
from agent_tools.models.cost import Range
from agent_tools.prediction.chunk_size import with_larger_chunks
from agent_tools.prediction.forecast import DEFAULTS, Forecast, chunks_of, forecast
from agent_tools.prediction.server_prediction import predict_server
from agent_tools.prediction.server_setting import ServerSetting

from .observation import Floats, Observation, PredictedHits

MODEL_OFF = 0.03
"""Distance between the model's and the measured hit rate above which the model is not believed."""
BLOCKS = 20
DRAWS = 400
INTERVAL = (5.0, 95.0)
"""Percentiles of the stated 90 % interval."""
MODELLED = {"fs": False, "fs_native": False, "resp": False, "valkey": False, "s3": False, "mock": True, "dax": True}
"""L2 adapters that the model covers, and whether a full one refuses chunks between its eviction ticks (0.5.6)."""


def server_setting(seen: Observation, instead: Mapping[str, Any] | None = None) -> ServerSetting | None:
    """The observed cache as the model takes it; ``None`` when its sizes or its eviction are not known, or not modelled.

    Args:
        seen: The observation.
        instead: Settings to take in place of those observed, by name.
    """
    config = CacheConfig.model_validate(seen.config.model_dump() | dict(instead or {}))
    size, watermark, ratio = config.max_size_mb, config.eviction_watermark, config.eviction_ratio
    if seen.chunk_bytes is None or size is None or watermark is None or ratio is None:
        return None
    setting = ServerSetting(
        capacity_chunks=size * MB / seen.chunk_bytes,
        watermark=watermark,
        ratio=ratio,
        policy="noop" if config.eviction_policy is EvictionPolicy.NOOP else "LRU",
    )
    return _with_second_tier(setting, config, seen.chunk_bytes) if config.l2_adapters else setting


def _with_second_tier(setting: ServerSetting, config: CacheConfig, chunk_bytes: float) -> ServerSetting | None:
    """One L2 adapter that keeps KV as it is and gets all that is stored; other arrangements are not modelled."""
    first, *others = config.l2_adapters or ()
    if others or first.type not in MODELLED or "serde" in first.settings or config.l2_store_policy not in {None, "default"}:
        return None
    eviction = first.eviction or {}
    isolated = eviction.get("eviction_policy") == "IsolatedLRU"
    return replace(
        setting,
        l2_capacity_chunks=np.inf if first.size_mb is None else first.size_mb * MB / chunk_bytes,
        l2_prefetch_policy=config.l2_prefetch_policy or "default",  # type: ignore[arg-type]  # one of the two, by its pattern
        l2_watermark=eviction.get("trigger_watermark", 0.8),
        l2_ratio=eviction.get("eviction_ratio", 0.2),
        l2_evicts=_evicts(first),
        l2_hard_limit=MODELLED[first.type],
        tenant_quotas=_quotas(config, chunk_bytes) if isolated else None,
    )


def _evicts(adapter: L2Adapter) -> bool:
    return adapter.eviction is not None and (
        adapter.size_mb is not None or adapter.eviction.get("eviction_policy") == "IsolatedLRU"
    )


def _quotas(config: CacheConfig, chunk_bytes: float) -> dict[str, float]:
    quotas = config.tenant_quotas_mb or {}
    return {"" if tenant == DEFAULT_TENANT else tenant: limit * MB / chunk_bytes for tenant, limit in quotas.items()}


def predicted_hits(seen: Observation, setting: ServerSetting) -> PredictedHits:
    """Hits of the window's requests under a setting; those before the window only warm the cache."""
    assert seen.log is not None  # noqa: S101  callers have a log
    if setting not in seen.predicted:
        runs = predict_server(seen.log, setting, clocks=seen.clocks).runs
        seen.predicted[setting] = PredictedHits(
            asked=runs[0].asked_chunks[seen.in_window].astype(np.float64),
            l1=np.array([run.l1_hit_chunks[seen.in_window] for run in runs], dtype=np.float64),
            l2=np.array([run.l2_hit_chunks[seen.in_window] for run in runs], dtype=np.float64),
        )
    return seen.predicted[setting]


def predicted_rate(seen: Observation, setting: ServerSetting) -> float:
    """The model's token hit rate of the window's requests under a setting, mean over the server's possible clocks."""
    hits = predicted_hits(seen, setting)
    return float((hits.l1 + hits.l2).sum(axis=1).mean() / hits.asked.sum()) if hits.asked.sum() else 0.0


def predicted_gain(seen: Observation, old: ServerSetting, new: ServerSetting) -> Gain:
    """Difference of the token hit rate on the same requests, with its 90 % interval."""
    found = _difference(seen, old, new, weight_of_l2=1.0)
    how = f"model of `lmcache server` 0.5.6 on the {int(seen.in_window.sum())} observed requests; block bootstrap"
    return Gain(lower=found.lower, estimate=found.estimate, upper=found.upper, method=how)


def corrected(gain: Gain, error: float) -> Gain:
    """A modelled gain moved by how far model and server were apart on one side of it; its interval is wider by as much."""
    estimate = min(max(gain.estimate + error, -1.0), 1.0)
    return gain.model_copy(
        update={
            "lower": max(min(gain.lower + error - abs(error), estimate), -1.0),
            "estimate": estimate,
            "upper": min(max(gain.upper + error + abs(error), estimate), 1.0),
        }
    )


def predicted_worth(seen: Observation, old: ServerSetting, new: ServerSetting) -> Range:
    """The same difference with each hit of L2 counted by the time it saves against one of L1."""
    return _difference(seen, old, new, weight_of_l2=seen.l2_weight)


def _difference(seen: Observation, old: ServerSetting, new: ServerSetting, *, weight_of_l2: float) -> Range:
    """Block bootstrap: blocks of successive requests are drawn with replacement, and with each draw both servers' clocks."""
    before, after = predicted_hits(seen, old), predicted_hits(seen, new)
    asked = before.asked
    hits_before, hits_after = (hits.l1 + weight_of_l2 * hits.l2 for hits in (before, after))
    blocks = [np.arange(len(asked))] if len(asked) < BLOCKS else np.array_split(np.arange(len(asked)), BLOCKS)
    asked_of, before_of, after_of = (_by_block(part, blocks) for part in (asked, hits_before, hits_after))
    draw = np.random.default_rng(0)
    rows = draw.integers(len(blocks), size=(DRAWS, len(blocks)))
    clocks = draw.integers(len(seen.clocks), size=(DRAWS, 2, 1))
    gained = after_of[rows, clocks[:, 0]].sum(axis=1) - before_of[rows, clocks[:, 1]].sum(axis=1)
    drawn = gained / np.maximum(asked_of[rows].sum(axis=1), 1)
    estimate = float((hits_after.sum(axis=1).mean() - hits_before.sum(axis=1).mean()) / max(asked.sum(), 1))
    lower, upper = np.percentile(drawn, INTERVAL)
    return Range(lower=min(float(lower), estimate), estimate=estimate, upper=max(float(upper), estimate))


def _by_block(part: Floats, blocks: list[np.ndarray[Any, Any]]) -> Floats:
    return np.array([part[..., block].sum(axis=-1) for block in blocks])


def forecast_of(seen: Observation, instead: ConfigUpdate | None = None, sizes_mb: Sequence[float] | None = None) -> Forecast:
    """What L1 sizes would give on all of an observation's log, with every other setting as it is, or as it is in `instead`.

    Args:
        seen: The observation, which has a log.
        instead: Settings to take in place of those in force; chunk_size must be a multiple of the present one.
        sizes_mb: L1 sizes, MB; by default a grid from the log, the present size, and that of `instead`.

    Raises:
        WorkloadError: The log cannot be predicted from, or not for such settings.
    """
    if instead is not None and instead.chunk_size is not None:
        seen = _with_chunks_of(seen, instead.chunk_size)
    assert seen.log is not None  # noqa: S101  callers have a log
    under = server_setting(seen, instead.known() if instead else None)
    if under is None and instead is not None:
        raise WorkloadError(f"the model does not cover {', '.join(instead.known())} with those values on {seen.cache}")
    here = server_setting(seen)
    return forecast(
        seen.log,
        under or DEFAULTS,
        capacities_chunks=None if sizes_mb is None else chunks_of(sizes_mb, seen.log, seen.metrics.kv_bytes_per_token),
        including=[] if sizes_mb else sorted({one.capacity_chunks for one in (here, under) if one is not None}),
        chunk_bytes=seen.chunk_bytes,
        shared=True,
    )


def _with_chunks_of(seen: Observation, tokens: int) -> Observation:
    """The same observation as a server with larger chunks would have logged it."""
    assert seen.log is not None  # noqa: S101  callers have a log
    factor, rest = divmod(tokens, seen.log.chunk_size)
    if rest or not factor:
        raise WorkloadError(
            f"chunks of {tokens} tokens cannot be predicted from a log with chunks of {seen.log.chunk_size}: only whole multiples"
            " of these can, since the log names whole chunks"
        )
    config = seen.config.model_copy(update={"chunk_size": tokens})
    return replace(seen, log=with_larger_chunks(seen.log, factor), config=config, predicted={})
