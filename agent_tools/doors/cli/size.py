"""The command that sizes L0, L1 and L2 for a model, from a recorded log, before anything is bought."""

from pathlib import Path
from typing import Annotated

import typer

from .option_groups import ModelOptions, with_options
from .options import AsJson
from .running import reported_errors, show
from .trace_options import LogOrTrace, TraceOptions


@with_options(engine=ModelOptions, trace=TraceOptions)
def size(  # noqa: PLR0913, PLR0917  the options of a command
    log: LogOrTrace,
    engine: ModelOptions,
    size_mb: Annotated[
        list[float] | None, typer.Option(help="An L1 size, MB (repeat it). By default a grid from the log.")
    ] = None,
    l1_mb: Annotated[float | None, typer.Option(min=0.001, help="L1 in front of the L2, MB. By default L1's knee.")] = None,
    prefill_tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Prompt tokens that the engine, all its GPUs together, computes per second.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of the engine. By default one for each rank.")] = None,
    l1_load_gb_per_second: Annotated[float | None, typer.Option(min=0.001, help="Bandwidth of loading from L1, GB/s.")] = None,
    l2_load_gb_per_second: Annotated[float | None, typer.Option(min=0.001, help="Bandwidth of loading from L2, GB/s.")] = None,
    l1_gb_month: Annotated[float | None, typer.Option(min=1e-9, help="Price of a GB of L1 for a month, any currency.")] = None,
    l2_gb_month: Annotated[float | None, typer.Option(min=1e-9, help="Price of a GB of L2 for a month.")] = None,
    gpu_hour: Annotated[float | None, typer.Option(min=1e-9, help="Price of a GPU for an hour.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curve of L1 with the knee, as .png or .svg.")] = None,
    *,
    trace: TraceOptions,
    as_json: AsJson = False,
) -> None:
    """Say what sizes of L0, L1 and L2 would give.

    The command needs no cache. Times and costs are shown only where the speeds and prices they need are given.
    """
    with reported_errors():
        from agent_tools.prediction.size_pricing import Terms
        from agent_tools.prediction.sizing import size_for
        from agent_tools.report.curve_files import write_sizing_picture
        from agent_tools.tools.predict import described_log
        from agent_tools.tools.size import describe_sizing

        found = size_for(
            trace.read(log),
            engine.kv(),
            gpu_free_gb=engine.gpu_free_gb,
            terms=Terms(
                prefill_tokens_per_second=prefill_tokens_per_second,
                gpus=gpus or engine.world_size,
                l1_load_gb_per_second=l1_load_gb_per_second,
                l2_load_gb_per_second=l2_load_gb_per_second,
                l1_gb_month=l1_gb_month,
                l2_gb_month=l2_gb_month,
                gpu_hour=gpu_hour,
            ),
            l1_sizes_mb=size_mb,
            l1_for_l2_mb=l1_mb,
        )
        text = "\n".join([*described_log(found.forecast), describe_sizing(found)])
        show(found.model_dump(mode="json"), text, as_json)
        if plot is not None:
            write_sizing_picture(found, plot)
