"""The commands that only read."""

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT, AccessLogFolder, ArenaFolder, AsJson, CacheName, MaxSize, Url, WindowSeconds
from .running import opened, show


def caches(as_json: AsJson = False) -> None:
    """List the caches, and what may be changed in each."""
    with opened(None) as (operations, _):
        from agent_tools.io_loop import io_loop
        from agent_tools.tools.observe import describe_cache

        found = io_loop.run(operations.caches)
        data = {name: {"kind": one.kind, "bounds": one.bounds.model_dump(mode="json")} for name, one in found.items()}
        show(data, "\n".join(describe_cache(name, one) for name, one in found.items()), as_json)


def status(cache: CacheName = DEFAULT, url: Url = None, as_json: AsJson = False) -> None:
    """Show health, figures since the start, and symptoms.

    The command is quick: it reads counters and leaves out the access log, which `diagnose` reads too.
    """
    with opened(cache, url) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.tools.observe import describe_status

        found = io_loop.run(partial(operations.status, name or cache, read_log=False))
        text = f"{describe_status(name or cache, found)} ({found.notes['symptoms']})"
        show(found.model_dump(mode="json"), text, as_json)


def diagnose(
    cache: CacheName = DEFAULT,
    url: Url = None,
    window: WindowSeconds = 0,
    access_log: AccessLogFolder = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong, worst first, with the figures. Propose nothing."""
    with opened(cache, url, access_log=access_log) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.tools.predict import describe_symptoms
        from agent_tools.tuning.terminal import Steps

        with Steps() as steps:
            found, seen = io_loop.run(operations.diagnosis, name, window or None, steps)
        show([one.model_dump(mode="json") for one in found], describe_symptoms(found, seen), as_json)


def recommend(
    cache: CacheName = DEFAULT,
    url: Url = None,
    window: WindowSeconds = 0,
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    access_log: AccessLogFolder = None,
    as_json: AsJson = False,
) -> None:
    """Say what would make the cache better, and why.

    Every proposal says how much it would gain, on which evidence, and what it costs. Nothing is changed.
    """
    with opened(cache, url, max_size_mb=max_size_mb, arena_folder=arena_folder, access_log=access_log) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.tools.observe import describe_advice
        from agent_tools.tuning.terminal import Steps

        with Steps() as steps:
            advice = io_loop.run(operations.recommend, name, window or None, None, steps)
        show(advice.model_dump(mode="json"), describe_advice(advice), as_json)


def compare(
    cache: Annotated[
        list[str], typer.Option("--cache", "-c", help="Name of a cache; give two or more that share one machine's memory.")
    ],
    window: WindowSeconds = 0,
    budget_mb: Annotated[
        float | None, typer.Option(min=0.001, help="Memory to divide, MB. By default what these caches have now.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say in which cache of a machine a megabyte earns most.

    The sizes that give the most hits together stay within the bounds of each cache. Nothing is changed.
    """
    with opened(None) as (operations, _):
        from agent_tools.io_loop import io_loop
        from agent_tools.tools.compare import describe_comparison

        found = io_loop.run(operations.compare_caches, cache, window or None, budget_mb)
        show(found.model_dump(mode="json"), describe_comparison(found), as_json)


def changes(
    cache: Annotated[str | None, typer.Option("--cache", "-c", help="Name of the cache; all caches by default.")] = None,
    url: Url = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many changes, the latest ones.")] = 10,
    as_json: AsJson = False,
) -> None:
    """List the changes on record, the latest first.

    Each line says what was changed, why, by whom, and whether it helped.
    """
    with opened(cache, url) as (operations, name):
        from agent_tools.changes.log import stories
        from agent_tools.io_loop import io_loop
        from agent_tools.tools.changes import describe_change

        latest = stories(io_loop.run(operations.changes, name))[:limit]
        text = "\n".join(map(describe_change, latest)) or "no changes are on record"
        show([[line.model_dump(mode="json") for line in story] for story in latest], text, as_json)


class StartForm(str, Enum):
    """The values of `agent_tools.models.start_configuration.StartForm`, which takes long to import."""

    ARGS = "args"
    ENV = "env"
    YAML = "yaml"
    KUBERNETES = "kubernetes"


def export(
    form: Annotated[
        StartForm, typer.Option("--as", help="args or kubernetes for an `lmcache server`, env or yaml for in-process LMCache.")
    ] = StartForm.ARGS,
    cache: CacheName = DEFAULT,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print the settings in force as start-up configuration.

    A change made live is gone with the next restart unless the start-up configuration has it too. Notes go to standard error.
    """
    with opened(cache, url) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.models.start_configuration import StartForm as Form
        from agent_tools.tuning.terminal import err, say

        found = io_loop.run(operations.export, name or cache, Form(form.value))
        for note in found.notes:
            say(f"note: {note}", err)
        show(found.model_dump(mode="json"), found.text.rstrip(), as_json)


def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the page.")] = Path("lmcache-report.html"),
    cache: CacheName = DEFAULT,
    url: Url = None,
    max_size_mb: MaxSize = None,
    arena_folder: ArenaFolder = None,
    access_log: AccessLogFolder = None,
) -> None:
    """Write a web page with advice, evidence and changes.

    The page has pictures, and needs no network.
    """
    with opened(cache, url, max_size_mb=max_size_mb, arena_folder=arena_folder, access_log=access_log) as (operations, name):
        from agent_tools.io_loop import io_loop
        from agent_tools.tuning.terminal import say

        output.write_text(io_loop.run(operations.report, name), encoding="utf-8")
        say(f"written: {output}")
