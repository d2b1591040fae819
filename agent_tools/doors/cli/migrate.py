"""The command that leads from in-process LMCache to an `lmcache server`. It changes nothing."""

from pathlib import Path
from typing import Annotated

import typer

from .option_groups import ModelOptions, with_options
from .options import AsJson
from .running import reported_errors, show
from .trace_options import EngineLog, SkipBadLines


@with_options(engine=ModelOptions)
def migrate(  # noqa: PLR0913, PLR0917  the options of a command
    configuration: Annotated[
        Path, typer.Option("--from", help="LMCache's YAML file (LMCACHE_CONFIG_FILE), or a file of LMCACHE_* variables.")
    ],
    log: Annotated[Path, typer.Option("--log", help="The folder of its chunk statistics (chunk_hashes_*.jsonl).")],
    engine: ModelOptions,
    host: Annotated[str, typer.Option(help="Address at which the engine will reach the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="RPC port of the server.")] = 5555,
    engine_log: EngineLog = None,
    skip_bad_lines: SkipBadLines = False,
    as_json: AsJson = False,
) -> None:
    """Say what an `lmcache server` would give instead."""
    with reported_errors():
        from agent_tools.deployments.in_process.start_file import read_start_file
        from agent_tools.recommender.migration import migration
        from agent_tools.recommender.server_counterpart import DEFAULT_CHUNK
        from agent_tools.tools.migrate import describe_migration
        from agent_tools.tools.predict import described_requests
        from agent_tools.workload.readers import read_trace

        settings = read_start_file(configuration)
        chunk = settings.get("chunk_size")
        requests = read_trace(
            log,
            chunk_size=chunk if isinstance(chunk, int) and chunk > 0 else DEFAULT_CHUNK,
            skip_bad_lines=skip_bad_lines,
            engine_log=engine_log,
        )
        found = migration(settings, requests, engine.kv(), gpu_free_gb=engine.gpu_free_gb, host=host, port=port)
        show(found.model_dump(mode="json"), f"{described_requests(requests)}\n{describe_migration(found)}", as_json)
