"""The command line `lmcache-agent`: a few lines per command, each calling one operation or graph."""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.demo import small as demo_run
from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.demo.engine.terminal import run_engine_demo
from agent_tools.errors import LMCacheToolError, SettingsError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, CacheMetrics, Mode, VerificationVerdict
from agent_tools.operations import Operations
from agent_tools.plain import plain
from agent_tools.prediction.chunk_size import with_larger_chunks
from agent_tools.prediction.forecast import by_model, chunks_of, forecast
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.report.canvas import write
from agent_tools.report.pictures import hit_rate_picture
from agent_tools.tools.observe import describe_advice, describe_status
from agent_tools.tools.predict import describe_forecast
from agent_tools.tools.toolkit import LMCacheToolkit
from agent_tools.tools.tune import TUNE
from agent_tools.tuning.fleet_state import FleetContext, FleetReport, ServerOutcome
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.terminal import err, out, run_at_terminal, say
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.tuning.tune_fleet import build_tune_fleet
from agent_tools.workload.readers import read_trace

T = TypeVar("T")


class Policy(str, Enum):
    """Eviction policies of L1."""

    LRU = "LRU"
    ARC = "ARC"
    NOOP = "noop"


class Prefetch(str, Enum):
    """What becomes of chunks read from L2: dropped from L1 after the read, or kept."""

    DEFAULT = "default"
    RETAIN = "retain"


app = typer.Typer(no_args_is_help=True, add_completion=False, help="See, tune and verify an LMCache KV cache.")

CacheName = Annotated[str, typer.Option("--cache", "-c", help="Name in the operator's directory (caches.toml).")]
Url = Annotated[str | None, typer.Option(help="http://host:port of an `lmcache server`'s admin API, instead of a name.")]
MaxSize = Annotated[float | None, typer.Option(help="With --url: the largest L1 that may be set, MB.")]
ArenaFolder = Annotated[
    Path | None, typer.Option(help="With --url: folder on the server's host for live L1 growth, e.g. /dev/shm.")
]
AccessLogFolder = Annotated[Path | None, typer.Option(help="With --url: folder of the server's --lookup-hash-log-dir.")]
WindowSeconds = Annotated[float, typer.Option(min=0, help="Seconds to observe; 0 for everything since the cache started.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def status(cache: CacheName = DEFAULT, url: Url = None, as_json: AsJson = False) -> None:
    """Health, figures since the cache started, and what looks wrong."""
    with _operations(url, CacheSettings()) as (operations, name):
        found = io_loop.run(operations.status, name or cache)
    _print(found.model_dump(mode="json"), describe_status(name or cache, found), as_json)


@app.command()
def recommend(
    cache: CacheName = DEFAULT,
    url: Url = None,
    window: WindowSeconds = 0,
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    access_log: AccessLogFolder = None,
    as_json: AsJson = False,
) -> None:
    """What would make the cache better, and why; changes nothing."""
    with _operations(url, _given(max_size_mb, arena_folder, access_log)) as (operations, name):
        advice = io_loop.run(operations.recommend, name or cache, window or None)
    _print(advice.model_dump(mode="json"), describe_advice(advice), as_json)


@app.command()
def tune(  # noqa: PLR0913, PLR0917  the options of a command
    cache: CacheName = DEFAULT,
    url: Url = None,
    mode: Annotated[Mode, typer.Option(help="How much to do without asking.")] = Mode.APPROVE,
    window: WindowSeconds = 30,
    verify_seconds: Annotated[float, typer.Option(min=1, help="Longest wait for traffic to verify by.")] = 120,
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    access_log: AccessLogFolder = None,
    as_json: AsJson = False,
) -> None:
    """Observe, recommend, ask, change, verify, and undo what did harm."""
    with _operations(url, _given(max_size_mb, arena_folder, access_log)) as (operations, name):
        context = TuneContext(cache=name or cache, mode=mode, window_seconds=window, verify_seconds=verify_seconds)
        graph = build_tune_cache(operations=operations)
        ran = run_at_terminal(graph, {"tune_reason": "command line"}, context)
    report = TuneReport.model_validate(ran["tune_report"])
    _print(report.model_dump(mode="json"), f"{report.outcome.value}: {report.summary}", as_json)
    raise typer.Exit(1 if report.outcome is Outcome.FAILED else 0)


@app.command()
def tune_fleet(
    cache: Annotated[
        list[str], typer.Option("--cache", "-c", help="Names in the directory (repeat it); a fleet is all its servers.")
    ],
    mode: Annotated[Mode, typer.Option(help="How much to do without asking.")] = Mode.APPROVE,
    window: WindowSeconds = 30,
    verify_seconds: Annotated[float, typer.Option(min=1, help="Longest wait for traffic to verify by, at each step.")] = 120,
    batch_size: Annotated[int, typer.Option(min=1, help="Servers changed at once, after the first of their group.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Tune many servers: one of each group of equals first, the rest in batches; back and stop at the first harm."""
    with _operations(None, CacheSettings()) as (operations, _):
        context = FleetContext(
            caches=tuple(cache), mode=mode, window_seconds=window, verify_seconds=verify_seconds, batch_size=batch_size
        )
        ran = run_at_terminal(build_tune_fleet(operations=operations), {"fleet_reason": "command line"}, context)
    report = FleetReport.model_validate(ran["fleet_report"])
    lines = [report.summary]
    lines += [f"{name}: {step.outcome.value}: {step.summary}" for name, step in report.servers.items() if step.outcome]
    lines += [f"{name} was left out: {why}" for name, why in report.left_out.items()]
    _print(report.model_dump(mode="json"), "\n".join(lines), as_json)
    raise typer.Exit(1 if any(step.outcome is ServerOutcome.FAILED for step in report.servers.values()) else 0)


@app.command()
def predict(  # noqa: PLR0913, PLR0917  the options of a command
    log: Annotated[Path, typer.Argument(help="A lookup-hash log (folder or file) or a trace in the Mooncake format.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw it, as .png or .svg.")] = None,
    watermark: Annotated[float, typer.Option(min=0.01, max=1, help="Eviction watermark of the server.")] = 0.8,
    ratio: Annotated[float, typer.Option(min=0.01, max=1, help="Eviction ratio of the server.")] = 0.2,
    policy: Annotated[Policy, typer.Option(help="Eviction policy of L1.")] = Policy.LRU,
    size_mb: Annotated[list[float] | None, typer.Option(help="L1 sizes, MB (repeat it); a grid from the log otherwise.")] = None,
    kv_bytes_per_token: Annotated[float | None, typer.Option(min=1, help="For a log that does not state it.")] = None,
    l2_mb: Annotated[float, typer.Option(min=0, help="Size of an L2, MB, that evicts at 0.8/0.2; 0 for none.")] = 0,
    l2_prefetch: Annotated[Prefetch, typer.Option(help="What becomes of chunks read from L2.")] = Prefetch.DEFAULT,
    chunk_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens per chunk, where the log holds or leaves open several.")
    ] = None,
    chunk_factor: Annotated[int, typer.Option(min=1, help="Predict for chunks so many times as large.")] = 1,
    skip_bad_lines: Annotated[bool, typer.Option(help="Leave out broken lines.")] = False,
    as_json: AsJson = False,
) -> None:
    """What any L1 size, and other settings, would have given on a recorded log: a table, and a picture."""
    with _told_errors():
        whole = with_larger_chunks(read_trace(log, chunk_size=chunk_size, skip_bad_lines=skip_bad_lines), chunk_factor)
        for model, part in by_model(whole).items():
            l2_chunks = chunks_of([l2_mb], part, kv_bytes_per_token)[0] if l2_mb else 0
            under = ServerSetting(1, watermark, ratio, policy.value, l2_chunks, l2_prefetch.value)
            sizes = chunks_of(size_mb, part, kv_bytes_per_token) if size_mb else None
            chunk_bytes = kv_bytes_per_token * part.chunk_size if kv_bytes_per_token else None
            found = forecast(part, under, capacities_chunks=sizes, chunk_bytes=chunk_bytes)
            _print(found.model_dump(mode="json"), f"{model}\n{describe_forecast(found)}".lstrip(), as_json)
            if plot is not None:
                write(hit_rate_picture(found), plot.with_stem(f"{plot.stem}-{_file_name(model)}") if model else plot)


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the page.")] = Path("lmcache-report.html"),
    cache: CacheName = DEFAULT,
    url: Url = None,
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    access_log: AccessLogFolder = None,
) -> None:
    """Write one web page with the advice, its evidence, pictures and the history of changes; it needs no network."""
    with _operations(url, _given(max_size_mb, arena_folder, access_log)) as (operations, name):
        output.write_text(io_loop.run(operations.report, name or cache), encoding="utf-8")
    say(f"written: {output}")


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen; other than loopback only with LMCACHE_AGENT_TOKEN set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8100,
) -> None:
    """Serve the REST routes under /lmcache, and the report page at /lmcache/report, until interrupted."""
    with _operations(None, CacheSettings()) as (operations, _):
        try:
            from . import rest  # noqa: PLC0415  an extra
        except ImportError as error:
            raise UnsupportedError("serving needs FastAPI and uvicorn: pip install 'lmcache-agent-tools[serve]'") from error
        rest.serve(operations, host, port)


@app.command()
def mcp(
    http: Annotated[bool, typer.Option(help="At http://127.0.0.1:PORT/mcp instead of standard input and output.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8101,
    read_only: Annotated[bool, typer.Option(help="Only the tools that change nothing.")] = False,
) -> None:
    """Serve the tools over MCP, until the client leaves or (with --http) until interrupted."""
    with _operations(None, CacheSettings()) as (operations, _):
        try:
            from . import mcp as door  # noqa: PLC0415  an extra
        except ImportError as error:
            raise UnsupportedError("MCP needs its SDK: pip install 'lmcache-agent-tools[mcp]'") from error
        tools = LMCacheToolkit(operations=operations, read_only=read_only, more=(TUNE,)).get_tools()
        if http:
            door.serve_http(tools, port, operations.registry.settings.token)
        else:
            door.serve_stdio(tools)


@app.command()
def demo(
    trace: Annotated[Path | None, typer.Option(help="A recorded workload (Mooncake format or lookup-hash log) instead.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated workload.")] = 0,
    skip_bad_lines: Annotated[bool, typer.Option(help="Leave out broken lines of the trace.")] = False,
    pass_seconds: Annotated[float, typer.Option(min=5, max=600, help="How long each of the two passes of traffic takes.")] = 35,
) -> None:
    """Tune a real, private LMCache under real traffic; exits 0 only when the tuning was verified."""
    with _told_errors():
        workload = (
            demo_run.recorded_workload(trace, pass_seconds, skip_bad_lines=skip_bad_lines)
            if trace
            else demo_run.agent_workload(seed, pass_seconds)
        )
        say(workload.description)
        settings = demo_run.settings_for(workload, Settings.load().state_folder / "demo")
        result = _interruptible(lambda: _run_demo(workload, settings))
        _print_demo(result)
        verification = result.report.verification
        verified = verification is not None and verification.verdict is VerificationVerdict.BETTER and verification.in_force
        raise typer.Exit(0 if verified and not result.corrupt_chunks else 1)


@app.command()
def demo_engine(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the report and the picture.")] = None,
    conversations: Annotated[int, typer.Option(min=2, help="Conversations in progress at a time.")] = 8,
    turns: Annotated[int, typer.Option(min=2, help="Requests of each conversation.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the conversations.")] = 0,
) -> None:
    """Tune the cache under a real vLLM on this machine's CPU; exits 0 only when that was verified. See `make demo-engine`."""
    with _told_errors():
        traffic = ChatTraffic(conversations=conversations, turns=turns, seed=seed)
        folder = Settings.load().state_folder / "engine-demo"
        verified = _interruptible(lambda: run_engine_demo(traffic, folder, output or folder))
        raise typer.Exit(0 if verified else 1)


async def _run_demo(workload: demo_run.Workload, settings: Settings) -> demo_run.DemoResult:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=err) as bar:
        task = bar.add_task("traffic", total=len(workload.log), figures="")

        def show(done: int, total: int, metrics: CacheMetrics) -> None:
            rate = metrics.tokens.hit_rate
            bar.update(task, completed=done, total=total, figures="" if rate is None else f"token hit rate {rate:.1%}")

        return await demo_run.run_demo(workload, settings, lambda text: say(text, bar.console), show)


def _print_demo(result: demo_run.DemoResult) -> None:
    table = Table("as the server counted", "before", "after", title="Same requests, both from an empty L1")
    for label, figure in DEMO_ROWS:
        table.add_row(label, figure(result.before), figure(result.after) if result.after else "-")
    out.print(table)
    report = result.report
    if report.advice is not None:
        best = report.advice.best
        say(f"Why: {report.advice.symptoms[0].summary}")
        say(f"Predicted: {best.expected_impact if best else 'nothing'}")
    say(f"Changed: {report.plan if report.change else 'nothing'}")
    say(f"Verified: {report.outcome.value}: {report.summary}")
    if result.corrupt_chunks:
        out.print(f"[red]{result.corrupt_chunks} chunks came back other than they were stored[/red]")


def _file_name(model: str) -> str:
    """A model's name, as the log has it, in the name of a file: usually it has a ``/``."""
    return re.sub(r"[^\w.-]", "_", plain(model))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


DEMO_ROWS: tuple[tuple[str, Callable[[CacheMetrics], str]], ...] = (
    ("token hit rate", lambda m: _share(m.tokens.hit, m.tokens.requested)),
    ("  from L1", lambda m: _share(m.tokens.hit_l1, m.tokens.requested)),
    ("  from L2", lambda m: _share(m.tokens.hit_l2, m.tokens.requested)),
    ("lookups", lambda m: str(m.total_requests)),
    ("tokens served from cache", lambda m: str(m.tokens_served)),
    ("tokens to compute", lambda m: str(m.tokens_computed)),
    ("chunks evicted", lambda m: str(m.evictions)),
    ("chunks not stored for want of room", lambda m: str(m.failed_stores)),
    ("L1 used, MB", lambda m: f"{m.used_size_mb:.1f}"),
    ("L1 total, MB", lambda m: f"{m.total_size_mb:.1f}"),
)


def _given(max_size_mb: float | None, arena_folder: Path | None, access_log: Path | None) -> CacheSettings:
    with _told_errors():
        return CacheSettings(bounds=Bounds(max_size_mb=max_size_mb), arena_folder=arena_folder, access_log=access_log)


@contextmanager
def _operations(url: str | None, given: CacheSettings) -> Iterator[tuple[Operations, str | None]]:
    """The operator's directory, or one of just the address given; closed at the end, errors told in one sentence."""
    with _told_errors():
        settings = Settings.load()
        if url is not None:
            # The command line is the operator's own: here, and only here, an address may be given.
            settings = Settings(caches={url: given.model_copy(update={"target": url})}, state_folder=settings.state_folder)
        elif given != CacheSettings():
            raise SettingsError(
                "--max-size-mb, --arena-folder and --access-log go with --url; a named cache has them in caches.toml"
            )
        operations = Operations(Registry(settings))
        try:
            yield operations, url
        finally:
            io_loop.run(operations.close)


@contextmanager
def _told_errors() -> Iterator[None]:
    try:
        yield
    except LMCacheToolError as error:
        err.print(f"[red]{error.code}:[/red] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    except ValidationError as error:
        err.print(f"[red]bad value:[/red] {escape('; '.join(e['msg'] for e in error.errors()))}", highlight=False)
        raise typer.Exit(2) from error


def _interruptible(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work; Ctrl-C cancels it, waits for its cleaning up, and exits with 130."""
    try:
        return asyncio.run(work())
    except KeyboardInterrupt as error:
        err.print("interrupted; the server was stopped")
        raise typer.Exit(130) from error


def _print(data: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    else:
        say(text)


if __name__ == "__main__":
    app()
