"""The commands that work on a recorded log, without any cache."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .option_groups import with_options
from .options import AsJson
from .running import reported_errors, show
from .trace_options import LogOrTrace, TraceOptions


class Policy(str, Enum):
    """Eviction policies of L1: of a server LRU, ARC, noop; of in-process LMCache LRU, LFU, FIFO, MRU."""

    LRU = "LRU"
    ARC = "ARC"
    NOOP = "noop"
    LFU = "LFU"
    FIFO = "FIFO"
    MRU = "MRU"


class Prefetch(str, Enum):
    """Whether chunks read from L2 are dropped from L1 after the read, or kept."""

    DEFAULT = "default"
    RETAIN = "retain"


WITH_SAMPLE = frozenset({"log", "sample", "kv_bytes_per_token", "chunk_size", "skip_bad_lines", "as_json"})
"""Parameters of `predict` that go with ``--sample``."""


@with_options(trace=TraceOptions)
def predict(  # noqa: PLR0913, PLR0917  the options of a command
    context: typer.Context,
    log: LogOrTrace,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curve, as .png or .svg.")] = None,
    watermark: Annotated[float, typer.Option(min=0.01, max=1, help="Eviction watermark of the server.")] = 0.8,
    ratio: Annotated[float, typer.Option(min=0.01, max=1, help="Eviction ratio of the server.")] = 0.2,
    policy: Annotated[Policy, typer.Option(help="Eviction policy of L1.")] = Policy.LRU,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Predict for LMCache inside the engine instead of a server; sizes per worker.")
    ] = False,
    size_mb: Annotated[
        list[float] | None, typer.Option(help="An L1 size, MB (repeat it). By default a grid chosen from the log.")
    ] = None,
    kv_bytes_per_token: Annotated[
        float | None, typer.Option(min=1, help="KV bytes of a token, for a log that does not state them.")
    ] = None,
    world_size: Annotated[
        list[str] | None,
        typer.Option(help="KV ranks as N, or of one model as MODEL=N (repeat it), for a lookup-hash log. By default 1."),
    ] = None,
    l2_mb: Annotated[
        float,
        typer.Option(
            min=0, help="Size of an L2, MB, that evicts at watermark 0.8 with ratio 0.2, or --in-process of a local disk."
        ),
    ] = 0,
    l2_prefetch: Annotated[
        Prefetch, typer.Option(help="default drops a chunk read from L2 from L1 after the read, retain keeps it.")
    ] = Prefetch.DEFAULT,
    engine_cache_tokens: Annotated[
        str, typer.Option(help="Sizes of the engine's own prefix cache, tokens, e.g. 200000,800000: also say what LMCache saves.")
    ] = "",
    sample: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1, help="Follow this share of the chunks of a lookup log of any size, e.g. 0.01."),
    ] = None,
    chunk_factor: Annotated[int, typer.Option(min=1, help="Predict for chunks this many times as large.")] = 1,
    *,
    trace: TraceOptions,
    as_json: AsJson = False,
) -> None:
    """Predict hit rates of other settings from a log.

    The command needs no cache. It prints what was read and assumed, and a table; --plot draws a picture.
    """
    if sample is not None:
        _check_sample_alone(context)
        _predict_from_sample(log, sample, kv_bytes_per_token, trace, as_json=as_json)
        return
    with reported_errors():
        from agent_tools.prediction.offline import forecasts_of_trace, setting_without_size, token_counts, world_sizes_in
        from agent_tools.report.curve_files import write_hit_rate_pictures
        from agent_tools.tools.predict import describe_forecast

        prefetch = l2_prefetch.value
        under = setting_without_size(policy.value, watermark, ratio, prefetch, l2_mb=l2_mb, in_process=in_process)
        found = forecasts_of_trace(
            trace.read(log),
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


def _check_sample_alone(context: typer.Context) -> None:
    """Refuse options that a sample would ignore."""
    given = [name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    others = ", ".join(f"--{name.replace('_', '-')}" for name in given if name not in WITH_SAMPLE)
    if others:
        message = f"it predicts an always-full LRU from a lookup log, so leave out {others}"
        raise typer.BadParameter(message, param_hint="--sample")


def _predict_from_sample(
    log: Path, share: float, kv_bytes_per_token: float | None, trace: TraceOptions, *, as_json: bool
) -> None:
    with reported_errors():
        from agent_tools.prediction.sampled_curve import sampled_curve
        from agent_tools.tools.predict import describe_sampled

        curve = sampled_curve(log, share, chunk_size=trace.chunk_size, skip_bad_lines=trace.skip_bad_lines)
        show(curve.model_dump(mode="json"), describe_sampled(curve, kv_bytes_per_token), as_json)
