"""The options of commands that read a log or a trace: what a file does not say itself."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

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


def with_trace_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `TraceOptions`, each by its name, in place of its parameter ``trace``."""
    hints = get_type_hints(TraceOptions, include_extras=True)
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(TraceOptions)
    ]
    signature = inspect.signature(command)
    taken = [
        option
        for own in signature.parameters.values()
        for option in (shared if own.name == "trace" else [own.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
    ]

    def run(**given: Any) -> None:  # noqa: ANN401  options of any type
        trace = TraceOptions(**{one.name: given.pop(one.name) for one in shared})
        command(**given, trace=trace)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__annotations__ = {one.name: one.annotation for one in taken}  # Typer reads both
    run.__signature__ = signature.replace(parameters=taken)  # type: ignore[attr-defined]
    return run
