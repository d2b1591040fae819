"""The options of commands that read a log or a trace: what a file does not say itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agent_tools.workload.access_log import AccessLog

LogOrTrace = Annotated[
    Path,
    typer.Argument(
        help="A file, or a folder of files: LMCache's lookup log or chunk statistics, a trace (Mooncake, Qwen-Bailian, Dynamo,"
        " AIPerf, Weka), or requests with text (OpenAI, batch files, ShareGPT, gateway logs). The content tells which."
    ),
]
EngineLog = Annotated[
    Path | None, typer.Option(help="The engine's log, for chunk statistics: it tells the tokens and the hits of each request.")
]
SkipBadLines = Annotated[bool, typer.Option(help="Leave out broken lines.")]


@dataclass(frozen=True)
class TraceOptions:
    """How a file is read. The defaults are those of `read_trace`, which documents each."""

    chunk_size: Annotated[int | None, typer.Option(min=1, help="Tokens per chunk, if the log does not settle it.")] = None
    chain: Annotated[bool, typer.Option("--chain", help="The ids of the trace stand for single blocks: chain them.")] = False
    time_unit: Annotated[str | None, typer.Option(help="Unit of the log's times (s, ms, us, ns), if it is not its format's.")] = (
        None
    )
    starts_per_second: Annotated[
        float, typer.Option(min=0.000001, help="Starts of sessions or requests a second, for a log without times.")
    ] = 1.0
    tokenizer: Annotated[Path | None, typer.Option(help="The model's tokenizer.json or its folder, for a log with text.")] = None
    engine_log: EngineLog = None
    skip_bad_lines: SkipBadLines = False

    def read(self, log: Path) -> "AccessLog":
        """Read a log or a trace.

        Raises:
            WorkloadError: As `read_trace`.
        """
        from agent_tools.workload.readers import read_trace

        return read_trace(log, **vars(self))
