"""Predictions from a recorded log alone, without any cache."""

from collections.abc import Sequence
from dataclasses import replace

from agent_tools.errors import WorkloadError
from agent_tools.plain import plain
from agent_tools.workload.access_log import AccessLog

from .chunk_size import with_larger_chunks
from .forecast import Forecast, by_model, chunks_of, forecast
from .server_setting import ServerSetting


def forecasts_of_trace(
    log: AccessLog,
    under: ServerSetting,
    *,
    sizes_mb: Sequence[float] | None = None,
    l2_mb: float = 0,
    kv_bytes_per_token: float | None = None,
    chunk_factor: int = 1,
    engine_cache_tokens: Sequence[int] = (),
) -> dict[str, Forecast]:
    """Return what L1 sizes would give on a log, for each model in it. Each model fills an L1 of its own.

    Args:
        log: The recorded requests.
        under: The other settings of the server. Its L1 and L2 sizes are replaced.
        sizes_mb: L1 sizes, MB; by default a grid chosen from the log.
        l2_mb: Size of an L2, MB; 0 for no L2.
        kv_bytes_per_token: KV bytes of a token, for a log that does not state them.
        chunk_factor: Predict for chunks this many times as large.
        engine_cache_tokens: Sizes of the engine's own prefix cache, tokens, for which to say what LMCache saves.

    Raises:
        WorkloadError: The log is empty, or a size in MB is asked for and the KV bytes of a token are unknown.
    """
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
