"""Predictions from a recorded log alone, without any cache."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent_tools.errors import WorkloadError
from agent_tools.plain import plain
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import with_world_sizes

from .chunk_size import with_larger_chunks
from .forecast import Forecast, by_model, chunks_of, forecast
from .in_process_disk import why_disk_not_modelled
from .in_process_setting import InProcessSetting, in_process_policy
from .server_setting import ServerSetting

EVERY_MODEL = ""
"""Stands for all models where world sizes are stated."""


def forecasts_of_trace(  # noqa: PLR0913  what a forecast depends on
    log: AccessLog,
    under: ServerSetting,
    *,
    sizes_mb: Sequence[float] | None = None,
    l2_mb: float = 0,
    kv_bytes_per_token: float | None = None,
    chunk_factor: int = 1,
    engine_cache_tokens: Sequence[int] = (),
    world_sizes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Forecast]:
    """Return what L1 sizes would give on a log, for each model in it. Each model fills an L1 of its own.

    Args:
        log: The recorded requests.
        under: The other settings, of a server or of in-process LMCache (sizes are then per worker). Its sizes are replaced.
        sizes_mb: L1 sizes, MB; by default a grid chosen from the log.
        l2_mb: Size of an L2, MB, of in-process LMCache of its local disk; 0 for no L2.
        kv_bytes_per_token: KV bytes of a token, for a log that does not state them.
        chunk_factor: Predict for chunks this many times as large.
        engine_cache_tokens: Sizes of the engine's own prefix cache, tokens, for which to say what LMCache saves.
        world_sizes: KV ranks of each model's engine, by model, for LMCache's lookup-hash log, which states the bytes of one rank.
            `EVERY_MODEL` stands for all models. Default: 1, and a note says so.

    Raises:
        WorkloadError: The log is empty, a size in MB is asked for and the KV bytes of a token are unknown, or a world size is of
            no model of the log.
    """
    log = with_stated_sizes(log, world_sizes or {})
    return {
        model: forecast(
            part,
            replace(under, l2_capacity_chunks=chunks_of([l2_mb], part, kv_bytes_per_token)[0] if l2_mb else 0),
            capacities_chunks=chunks_of(sizes_mb, part, kv_bytes_per_token) if sizes_mb else None,
            chunk_bytes=kv_bytes_per_token * part.chunk_size if kv_bytes_per_token else None,
            engine_cache_tokens=engine_cache_tokens,
        )
        for model, part in by_model(with_larger_chunks(log, chunk_factor)).items()
    }


def with_stated_sizes(log: AccessLog, world_sizes: Mapping[str, Sequence[int]]) -> AccessLog:
    """Return the log with the world sizes that a person stated.

    Raises:
        WorkloadError: The log has no such model, or does not state the bytes of its chunks, so that no world size is needed.
    """
    models = {layout.model for layout in log.layouts if layout is not None}
    if EVERY_MODEL in world_sizes and models:
        of_all = dict.fromkeys(models, world_sizes[EVERY_MODEL])
        world_sizes = {**of_all, **{model: sizes for model, sizes in world_sizes.items() if model != EVERY_MODEL}}
    strangers = [plain(model) for model in world_sizes if model not in models]
    if strangers and not models:
        raise WorkloadError("this log does not state the bytes of a chunk, so it needs no world size: give kv_bytes_per_token")
    if strangers:
        raise WorkloadError(f"the log has no model {', '.join(strangers)}; it has {', '.join(map(plain, sorted(models)))}")
    return with_world_sizes(log, world_sizes) if world_sizes else log


def world_sizes_in(texts: Sequence[str]) -> dict[str, list[int]]:
    """Return world sizes that a person gave as ``N`` for all models or as ``MODEL=N``, each model as often as it has sizes.

    Raises:
        WorkloadError: A text is neither, or N is not from 1 to 255.
    """
    sizes: dict[str, list[int]] = {}
    for text in texts:
        model, equals, size = text.rpartition("=")
        if bool(equals) != bool(model) or not size.isdecimal() or not 1 <= int(size) <= 255:
            raise WorkloadError(f"{plain(text)} is not N or MODEL=N with N from 1 to 255, e.g. meta-llama/Llama-3.1-70B=8")
        sizes.setdefault(model, []).append(int(size))
    return sizes


def setting_without_size(
    policy: str, watermark: float, ratio: float, prefetch: str, *, l2_mb: float, in_process: bool
) -> ServerSetting:
    """Return the setting of a server or of in-process LMCache, but for its sizes.

    Raises:
        WorkloadError: The deployment has no such policy, or in-process LMCache no model of a disk with it.
    """
    inside = in_process_policy(policy)
    if in_process:
        if inside is None:
            raise WorkloadError(f"in-process LMCache has no policy {policy}: choose LRU, LFU, FIFO or MRU")
        withheld = why_disk_not_modelled(inside) if l2_mb else None
        if withheld is not None:
            raise WorkloadError(f"{withheld}. Leave the L2 out, or choose LRU or FIFO")
        return InProcessSetting(1, cache_policy=inside)
    if policy not in {"LRU", "ARC", "noop"}:
        raise WorkloadError(f"`lmcache server` has no policy {policy}: choose LRU, ARC or noop, or predict with --in-process")
    return ServerSetting(1, watermark, ratio, policy, l2_prefetch_policy=prefetch)  # type: ignore[arg-type]  # as checked


def token_counts(text: str) -> list[int]:
    """Return token counts that a person gave as ``200000,800000``.

    Raises:
        WorkloadError: A part is not a whole number.
    """
    parts = [part.strip().replace("_", "") for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise WorkloadError(f"{plain(', '.join(wrong))}: give token counts as whole numbers, e.g. 200000,800000")
    return [int(part) for part in parts]
