"""The demo at a terminal: a progress bar while traffic runs, and a table at the end."""

from collections.abc import Callable

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent_tools.caches.settings import Settings
from agent_tools.models import CacheMetrics
from agent_tools.tuning.terminal import err, out, say

from .small import DemoResult, Workload, run_demo


async def run_demo_at_terminal(workload: Workload, settings: Settings) -> DemoResult:
    """Run the demo and show its progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=err) as bar:
        task = bar.add_task("traffic", total=len(workload.log), figures="")

        def show(done: int, total: int, metrics: CacheMetrics) -> None:
            rate = metrics.tokens.hit_rate
            bar.update(task, completed=done, total=total, figures="" if rate is None else f"token hit rate {rate:.1%}")

        return await run_demo(workload, settings, lambda text: say(text, bar.console), show)


def print_demo(result: DemoResult) -> None:
    """Print what the demo measured, changed and verified."""
    table = Table("as the server counted", "before", "after", title="Same requests, both from an empty L1")
    for label, figure in ROWS:
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


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


ROWS: tuple[tuple[str, Callable[[CacheMetrics], str]], ...] = (
    ("token hit rate", lambda m: _share(m.tokens.hit, m.tokens.requested)),
    ("  from L1", lambda m: _share(m.tokens.hit_l1, m.tokens.requested)),
    ("  from L2", lambda m: _share(m.tokens.hit_l2, m.tokens.requested)),
    ("lookups", lambda m: str(m.total_requests)),
    ("tokens served from cache", lambda m: str(m.tokens_served)),
    ("tokens to compute", lambda m: str(m.tokens_computed)),
    ("chunks evicted", lambda m: str(m.evictions)),
    ("chunks not stored: L1 was full", lambda m: str(m.failed_stores)),
    ("L1 used, MB", lambda m: f"{m.used_size_mb:.1f}"),
    ("L1 total, MB", lambda m: f"{m.total_size_mb:.1f}"),
)
