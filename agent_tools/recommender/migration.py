"""From in-process LMCache to an `lmcache server`: what a server would give on the same requests, and how to start it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from agent_tools.deployments.server.command_line import Flags, command_line
from agent_tools.errors import SettingsError
from agent_tools.models import MB
from agent_tools.models.config import MB_IN_A_GB, Frozen, Share
from agent_tools.prediction.engine_cache import EngineCache, engine_caches
from agent_tools.prediction.forecast import by_model
from agent_tools.prediction.in_process_disk import can_hang
from agent_tools.prediction.in_process_setting import InProcessSetting, in_process_policy
from agent_tools.prediction.isolation import isolated
from agent_tools.prediction.model_kv import ModelKv
from agent_tools.prediction.server_prediction import ServerPrediction, predict_server, predict_settings
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.prediction.sizing import l0_tokens_of
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import ALIGNMENT

from .proposals import RATIOS, WATERMARKS
from .server_counterpart import DEFAULT_CHUNK, DEFAULT_POLICY, DEFAULT_SIZE_GB, counterpart_of, kv_transfer_config
from .tier_behind import TierBehind, of_configuration

FACTORS = (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Sizes of the server's L1 that are tried, in parts of what all workers have today."""
AS_GOOD = 0.005
"""Hit rate (or saved share, where the engine's own cache is known) that a server may fall short of today's and be as good."""
TRIED_CLOCKS = 5
"""Eviction clocks of the search; what is reported has all of them."""
Rate = Annotated[float, Field(ge=0, le=1)]


class ServerSize(Frozen):
    """What a server with an L1 of one size would give on the log. Rates are of the prompt tokens in whole chunks."""

    l1_mb: Annotated[float, Field(gt=0)]
    """L1 of the server, MB, for all ranks."""
    hit_rate_defaults: Rate
    """Hit rate with watermark 0.8 and ratio 0.2."""
    watermark: Share
    """The best watermark that was tried."""
    ratio: Share
    """The best ratio that was tried."""
    hit_rate: Rate
    """Hit rate with these."""
    lower: Rate
    """Lower end of its 90 % interval."""
    upper: Rate
    """Upper end of its 90 % interval."""
    saved: Rate | None
    """Part of it that the engine's own cache does not have; ``None`` if the GPU's memory is not given."""
    dropped: Rate
    """Share of the chunks asked for whose store the server would drop whole."""
    with_l2: Rate | None
    """Hit rate of L1 and L2 together; ``None`` if there is no L2 with a known size."""


class Migration(Frozen):
    """A server in place of in-process LMCache."""

    present_mb: float
    """L1 of all workers together today, MB."""
    present_policy: str
    present_hit_rate: Rate
    """Hit rate of in-process LMCache on the log with its memory alone, by our model. `chosen` is as good as this."""
    present_with_tier: Rate | None
    """Hit rate of its memory and the tier behind it together, to be set against `ServerSize.with_l2`; ``None`` if there is no
    such tier, or if it is not modelled (then `notes` say why)."""
    present_from_tier: Rate | None
    """The part of it that comes from that tier."""
    present_saved: Rate | None
    """Part of it that the engine's own cache does not have; ``None`` if the GPU's memory is not given."""
    sizes: tuple[ServerSize, ...]
    """Smallest first."""
    chosen: ServerSize
    """The smallest size that is as good as today, by what it saves if that is known; if none is, the memory of today."""
    command: str
    """Command line of the server. Secrets appear as ``***``."""
    kv_transfer_config: str
    """JSON for vLLM's ``--kv-transfer-config``."""
    kept: dict[str, str]
    """Setting -> what stands for it."""
    without_counterpart: dict[str, str]
    """Setting -> why nothing stands for it."""
    changes: tuple[str, ...]
    """What changes in behaviour, one sentence each."""
    notes: tuple[str, ...]


def migration(
    settings: Mapping[str, Any],
    log: AccessLog,
    model: ModelKv,
    *,
    gpu_free_gb: float | None = None,
    host: str = "127.0.0.1",
    port: int = 5555,
) -> Migration:
    """Return the server that would stand in place of in-process LMCache.

    Args:
        settings: The configuration of in-process LMCache, by LMCache's names.
        log: Its own record of lookups.
        model: KV of the model that the engine serves, with its ranks.
        gpu_free_gb: Memory that each GPU has for KV, GB, to say what LMCache saves beyond the engine's own cache.
        host: Address at which the engine reaches the server.
        port: RPC port of the server.

    Raises:
        SettingsError: The configuration has a value that LMCache does not take.
        WorkloadError: The log mixes models.
    """
    size_gb, chunk = _number(settings, "max_local_cpu_size", DEFAULT_SIZE_GB), _number(settings, "chunk_size", DEFAULT_CHUNK)
    policy = in_process_policy(str(settings.get("cache_policy") or DEFAULT_POLICY))
    if policy is None:
        raise SettingsError("in-process LMCache has the policies LRU, LFU, FIFO and MRU: mend cache_policy")
    if chunk != log.chunk_size:
        raise SettingsError(
            f"chunk_size is {chunk:g} in the configuration and {log.chunk_size} in the log: name the log of this engine"
        )
    (log,) = by_model(log).values()
    log = isolated(log)
    one = -(-model.bytes_per_rank * log.chunk_size // ALIGNMENT) * ALIGNMENT
    chunk_mb, present_mb = one * model.copies / MB, size_gb * MB_IN_A_GB * model.copies
    own = None if gpu_free_gb is None else engine_caches(log, [l0_tokens_of(model, gpu_free_gb)])[0]
    present = InProcessSetting(size_gb * MB_IN_A_GB * MB / one, cache_policy=policy)
    tier = of_configuration(settings, policy, one)
    now = predict_server(log, present)
    with_tier = predict_server(log, replace(present, l2_capacity_chunks=tier.chunks)) if tier.chunks else None
    found = counterpart_of(settings, model.copies)
    l2_mb = next((adapter.size_mb for adapter in found.adapters if adapter.size_mb), None)
    sizes = tuple(_server(log, factor * present_mb, chunk_mb, own, l2_mb) for factor in FACTORS)
    good = [size for size in sizes if _worth(size) >= _value(now, own) - AS_GOOD]
    chosen = good[0] if good else sizes[FACTORS.index(1.0)]
    return Migration(
        present_mb=present_mb,
        present_policy=policy,
        present_hit_rate=now.hit_rate,
        present_with_tier=None if with_tier is None else with_tier.hit_rate,
        present_from_tier=None if with_tier is None else with_tier.runs[0].l2_hit_rate,
        present_saved=None if own is None else own.saved(now),
        sizes=sizes,
        chosen=chosen,
        command=command_line(_flags(found.flags, chosen, port)),
        kv_transfer_config=kv_transfer_config(found.connector, host, port),
        kept=found.kept,
        without_counterpart=found.lost,
        changes=_changes(log, chosen, chunk_mb, model),
        notes=(
            *model.assumed,
            *_of_latent(model),
            *found.notes,
            *_notes(settings, log, good=bool(good)),
            *_of_the_tier(tier, log, present.capacity_chunks, l2=l2_mb is not None),
            *log.remarks,
        ),
    )


def _of_latent(model: ModelKv) -> Sequence[str]:
    if model.copies == model.ranks:
        return ()
    return (
        f"only the first of {model.ranks} workers stores the KV of this model (MLA), so only its memory counts as today's L1",
    )


def _number(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise SettingsError(f"{name} must be a number above 0; mend it in the configuration")
    return value


def _flags(known: Flags, chosen: ServerSize, port: int) -> Flags:
    flags: Flags = {"--l1-size-gb": chosen.l1_mb / MB_IN_A_GB, **known}
    if (chosen.watermark, chosen.ratio) != (0.8, 0.2):
        flags |= {"--eviction-trigger-watermark": chosen.watermark, "--eviction-ratio": chosen.ratio}
    return flags | ({} if port == 5555 else {"--port": port})


def _server(log: AccessLog, l1_mb: float, chunk_mb: float, own: EngineCache | None, l2_mb: float | None) -> ServerSize:
    usual = ServerSetting(l1_mb / chunk_mb)
    # Above LMCache's own watermark, L1 freezes for good if a request does not fit into what stays free.
    room = 1 - int(log.chunks_per_request.max(initial=0)) / usual.capacity_chunks
    safe = [watermark for watermark in WATERMARKS if watermark <= max(usual.watermark, room)]
    tried = [replace(usual, watermark=watermark, ratio=ratio) for watermark in safe for ratio in RATIOS]
    best = max(predict_settings(log, tried, clocks=TRIED_CLOCKS), key=lambda one: _value(one, own)).setting
    plain_run, run = predict_settings(log, [usual, best])
    if _value(run, own) - _value(plain_run, own) < AS_GOOD:  # not worth another setting than LMCache's own
        run, best = plain_run, usual
    lower, upper = run.interval
    return ServerSize(
        l1_mb=l1_mb,
        hit_rate_defaults=plain_run.hit_rate,
        watermark=best.watermark,
        ratio=best.ratio,
        hit_rate=run.hit_rate,
        lower=lower,
        upper=upper,
        saved=None if own is None else own.saved(run),
        dropped=_dropped(run),
        with_l2=None
        if l2_mb is None
        else predict_settings(log, [replace(best, l2_capacity_chunks=l2_mb / chunk_mb)])[0].hit_rate,
    )


def _value(run: ServerPrediction, own: EngineCache | None) -> float:
    """Return what LMCache saves the engine; without the engine's own cache, the hit rate."""
    return run.hit_rate if own is None else own.saved(run)


def _worth(size: ServerSize) -> float:
    return size.hit_rate if size.saved is None else size.saved


def _dropped(run: ServerPrediction) -> float:
    asked = int(run.runs[0].asked_chunks.sum())
    return float(np.clip(run.failed_chunks / asked, 0, 1)) if asked else 0.0


def _changes(log: AccessLog, chosen: ServerSize, chunk_mb: float, model: ModelKv) -> tuple[str, ...]:
    headroom_mb = (1 - chosen.watermark) * chosen.l1_mb
    largest_mb = int(log.chunks_per_request.max(initial=0)) * chunk_mb
    larger = int((log.chunks_per_request * chunk_mb > headroom_mb).sum())
    return (
        "a store is one batch: if it does not fit into the free space, the server drops all of its chunks and still reports"
        f" success; the largest request has {largest_mb:,.0f} MB, {headroom_mb:,.0f} MB stay free at the watermark, {larger:,} of"
        f" {len(log):,} requests are larger, and {chosen.dropped:.1%} of the chunks asked for would be dropped",
        "a thread evicts once a second, a share of the keys at once, so L1 works below its size; in-process LMCache evicts one"
        " chunk at a time when memory is full",
        "the end of a prompt is evicted first; in-process LMCache keeps the end of a new prompt longest",
        "the engine's own prefix cache (L0) is still asked first, and LMCache saves only what L0 lacks; the server's counters"
        " and log count hits that L0 has too",
        "one cache serves all ranks and every engine that names the server"
        + (f": {model.ranks} workers' caches become one" if model.ranks > 1 else "")
        + "; it outlives a restart of the engine, and a restart of the server empties L1 and degrades the engine for about 20 s",
    )


def _of_the_tier(tier: TierBehind, log: AccessLog, l1_chunks: float, *, l2: bool) -> Sequence[str]:
    """Say what the tier behind today's memory does to the figures."""
    if tier.withheld is not None:
        server = "; with_l2 has the server's with its L2" if l2 else ""
        return (f"today's hit rate is of memory alone: {tier.withheld}{server}",)
    longest = int(log.chunks_per_request.max(initial=0))
    if not tier.chunks or not can_hang(longest, l1_chunks):
        return tier.assumed
    return (
        *tier.assumed,
        f"today's memory holds {l1_chunks:,.0f} chunks and the longest prompt has {longest:,}: with a tier behind it, a hit that"
        " memory cannot hold makes the engine hang, so what is stated of today with it cannot be relied on",
    )


def _notes(settings: Mapping[str, Any], log: AccessLog, *, good: bool) -> Sequence[str]:
    notes = list(log.assumed)
    if not good:
        notes.append(
            f"no size up to {max(FACTORS):g} times today's memory is as good as today on this log; the command has the memory of"
            " today"
        )
    if settings.get("local_cpu") is False:
        notes.append("local_cpu is false: in-process LMCache keeps nothing in memory, so today's hit rate is an upper bound")
    if log.duration == 0:
        notes.append("all requests have the same time, so the model of the server never evicts between them: do not rely on it")
    return notes
