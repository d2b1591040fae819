"""The engine demo on a terminal: progress while it runs, a table at its end, the report and the picture in a folder."""

from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent_tools.models import CacheMetrics, VerificationVerdict
from agent_tools.report.canvas import write
from agent_tools.tuning.terminal import err, out, say

from .chat_traffic import ChatAnswer, ChatTraffic
from .demo import EngineDemoResult, Phase, run_demo, settings_for
from .picture import ttft_picture

SAVED = "prompt tokens loaded from LMCache"
COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}{task.fields[of]}"), TimeElapsedColumn())


async def run_engine_demo(traffic: ChatTraffic, state_folder: Path, output: Path) -> bool:
    """Run the demo, show its results, and write ``report.html`` and ``ttft.svg``. Return whether the change was verified to help.

    Args:
        traffic: The requests, sent before and after the change.
        state_folder: Folder for the change log and the logs of the servers.
        output: Folder for the report and the picture.
    """
    requests = len(traffic.requests())
    say(
        f"{traffic.conversations} conversations of {traffic.turns} turns (seed {traffic.seed}): {requests} requests,"
        f" {traffic.tokens} distinct tokens; a vLLM with a model of random weights answers them"
    )
    with Progress(*COLUMNS, TextColumn("{task.fields[last]}"), console=err) as bar:
        tasks = {}

        def show(phase: str, answer: ChatAnswer) -> None:
            if phase not in tasks:
                known = phase != "during"
                tasks[phase] = bar.add_task(phase, total=requests if known else None, of=f"/{requests}" if known else "", last="")
            text = "no answer" if answer.ttft is None else f"first token after {answer.ttft:.2f} s"
            bar.update(tasks[phase], advance=1, last=text)

        result = await run_demo(traffic, settings_for(traffic, state_folder), lambda text: say(text, bar.console), show)
    show_result(result)
    keep(result, output)
    found = result.report.verification
    return found is not None and found.verdict is VerificationVerdict.BETTER and found.in_force and not errors_of(result)


def keep(result: EngineDemoResult, output: Path) -> None:
    """Write the report and the picture."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.html").write_text(result.page, encoding="utf-8")
    write(ttft_picture(result), output / "ttft.svg")
    say(f"Written: {output / 'report.html'}, {output / 'ttft.svg'}")


def errors_of(result: EngineDemoResult) -> list[str]:
    """Return the errors of all requests that failed."""
    return [error for phase in (result.before, result.during, result.after) if phase for error in phase.errors]


def show_result(result: EngineDemoResult) -> None:
    """Print the figures before and after the change, the prediction beside them, and what was done."""
    table = Table("", "before", "predicted", "after", title="Same requests, both from empty caches")
    for label, figure in ROWS:
        after = figure(result.after) if result.after else "-"
        table.add_row(label, figure(result.before), _predicted(result).get(label, ""), after)
    out.print(table)
    if result.after is not None:
        better = result.before.ttft.p50 / result.after.ttft.p50
        say(f"The median request has its first token {better:.1f} times sooner.")
    report = result.report
    say(f"Changed: {report.plan if report.change else 'nothing'}")
    say(f"Verified: {report.outcome.value}: {report.summary}")
    for error in errors_of(result)[:3]:
        say(f"A request failed: {error}")


def _predicted(result: EngineDemoResult) -> dict[str, str]:
    """Return what the advice predicted for the proposed setting, by row."""
    best = result.report.advice.best if result.report.advice else None
    found = {}
    tokens, engine = _metrics(result.before).tokens, _metrics(result.before).engine
    if best is not None and best.gain is not None and engine is not None and engine.saved_share is not None:
        # The gain is a share of the whole chunks that LMCache was asked for; vLLM counts whole prompts.
        asked = tokens.requested / max(engine.prompt_tokens, 1)
        found[SAVED] = f"{engine.saved_share + best.gain.estimate * asked:.1%}"
    if best is not None and best.ttft is not None:
        then = best.ttft.then
        times = {"mean": then.mean, "p50": then.p50, "p95": then.p95, "p99": then.p99}
        found |= {f"time to first token, {name}": _ms(value) for name, value in times.items()}
    return found


def _metrics(phase: Phase) -> CacheMetrics:
    assert phase.metrics is not None  # noqa: S101  the phase is over
    return phase.metrics


def _share(phase: Phase, name: str) -> str:
    share = getattr(_metrics(phase).engine, name, None)
    return "unknown" if share is None else f"{share:.1%}"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms"


def _prompt_tokens(phase: Phase) -> int:
    return sum(one.prompt_tokens for one in phase.answers)


ROWS: tuple[tuple[str, Callable[[Phase], str]], ...] = (
    ("time to first token, mean", lambda phase: _ms(phase.ttft.mean)),
    ("time to first token, p50", lambda phase: _ms(phase.ttft.p50)),
    ("time to first token, p95", lambda phase: _ms(phase.ttft.p95)),
    ("time to first token, p99", lambda phase: _ms(phase.ttft.p99)),
    ("requests a second", lambda phase: f"{len(phase.answers) / phase.seconds:.2f}"),
    ("prompt tokens a second", lambda phase: f"{_prompt_tokens(phase) / phase.seconds:,.0f}"),
    (SAVED, lambda phase: _share(phase, "saved_share")),
    ("prompt tokens from vLLM's own cache", lambda phase: _share(phase, "own_cache_share")),
    ("prompt tokens computed", lambda phase: _share(phase, "computed_share")),
    ("LMCache's own token hit rate", lambda phase: f"{_metrics(phase).tokens.hit_rate or 0:.1%}"),
    ("L1 total, MB", lambda phase: f"{_metrics(phase).total_size_mb or 0:.0f}"),
)
