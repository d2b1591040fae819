"""The command that predicts from a recorded log, without any cache."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson
from .running import reported_errors, show


class Policy(str, Enum):
    """Eviction policies of L1."""

    LRU = "LRU"
    ARC = "ARC"
    NOOP = "noop"


class Prefetch(str, Enum):
    """Whether chunks read from L2 are dropped from L1 after the read, or kept."""

    DEFAULT = "default"
    RETAIN = "retain"


def predict(  # noqa: PLR0913, PLR0917  the options of a command
    log: Annotated[Path, typer.Argument(help="A lookup-hash log (folder or file), or a trace in the Mooncake format.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw the curve, as .png or .svg.")] = None,
    watermark: Annotated[float, typer.Option(min=0.01, max=1, help="Eviction watermark of the server.")] = 0.8,
    ratio: Annotated[float, typer.Option(min=0.01, max=1, help="Eviction ratio of the server.")] = 0.2,
    policy: Annotated[Policy, typer.Option(help="Eviction policy of L1.")] = Policy.LRU,
    size_mb: Annotated[
        list[float] | None, typer.Option(help="An L1 size, MB (repeat it). By default a grid chosen from the log.")
    ] = None,
    kv_bytes_per_token: Annotated[
        float | None, typer.Option(min=1, help="KV bytes of a token, for a log that does not state them.")
    ] = None,
    world_size: Annotated[
        list[str] | None,
        typer.Option(help="KV ranks of a model's engine as MODEL=N (repeat it), for a lookup-hash log. By default 1."),
    ] = None,
    l2_mb: Annotated[
        float, typer.Option(min=0, help="Size of an L2, MB, that evicts at watermark 0.8 with ratio 0.2; 0 for no L2.")
    ] = 0,
    l2_prefetch: Annotated[
        Prefetch, typer.Option(help="default drops a chunk read from L2 from L1 after the read, retain keeps it.")
    ] = Prefetch.DEFAULT,
    engine_cache_tokens: Annotated[
        str, typer.Option(help="Sizes of the engine's own prefix cache, tokens, e.g. 200000,800000: also say what LMCache saves.")
    ] = "",
    chunk_size: Annotated[int | None, typer.Option(min=1, help="Tokens per chunk, if the log does not settle it.")] = None,
    chunk_factor: Annotated[int, typer.Option(min=1, help="Predict for chunks this many times as large.")] = 1,
    skip_bad_lines: Annotated[bool, typer.Option(help="Leave out broken lines.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict hit rates of other settings from a log.

    The command needs no cache. It prints a table, and draws a picture with --plot.
    """
    with reported_errors():
        from agent_tools.prediction.offline import forecasts_of_trace, token_counts, world_sizes_in
        from agent_tools.prediction.server_setting import ServerSetting
        from agent_tools.report.curve_files import write_hit_rate_pictures
        from agent_tools.tools.predict import describe_forecast
        from agent_tools.workload.readers import read_trace

        under = ServerSetting(1, watermark, ratio, policy.value, l2_prefetch_policy=l2_prefetch.value)
        found = forecasts_of_trace(
            read_trace(log, chunk_size=chunk_size, skip_bad_lines=skip_bad_lines),
            under,
            sizes_mb=size_mb,
            l2_mb=l2_mb,
            kv_bytes_per_token=kv_bytes_per_token,
            chunk_factor=chunk_factor,
            engine_cache_tokens=token_counts(engine_cache_tokens),
            world_sizes=world_sizes_in(world_size or ()),
        )
        for model, one in found.items():
            show(one.model_dump(mode="json"), f"{model}\n{describe_forecast(one)}".lstrip(), as_json)
        if plot is not None:
            write_hit_rate_pictures(found, plot)
