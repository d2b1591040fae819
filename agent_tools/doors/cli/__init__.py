"""The command line `lmcache-agent`. A file for each group of commands, and this one, which lists them all.

A command imports what it runs on when it is called, so that ``--help`` needs Typer alone. A command has no logic: it calls one
operation, one graph or one function of a lower room, and prints the result.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from . import act, look, migrate, monitoring, offline, serve, size, try_out, tune, watch

HELP = "See, tune and verify an LMCache KV cache."
EPILOG = """\b
Exit codes:
  0    done; also when nothing needed to be done
  1    failed or refused; the message says why
  2    wrong usage
  3    not done, because a person must act or decide: not approved, only the
       operator can do it, or `verify` could not confirm that a change helped
  130  interrupted
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback(help=HELP, epilog=EPILOG)
def settings_of_all_commands(
    settings: Annotated[
        Path | None, typer.Option("--settings", help="File to read the settings from, instead of the caches.toml that is found.")
    ] = None,
) -> None:
    """Take the options that stand before the name of a command."""
    if settings is not None:
        os.environ["LMCACHE_AGENT_SETTINGS"] = str(settings)  # `Settings` reads it, in this process and in those it starts


for command in (
    look.caches,
    look.status,
    look.diagnose,
    look.recommend,
    look.compare,
    look.changes,
    look.export,
    act.plan,
    act.set_,
    act.verify,
    act.undo,
    act.optimize,
    act.clear,
    tune.tune,
    tune.tune_fleet,
    watch.watch,
    offline.predict,
    size.size,
    migrate.migrate,
    monitoring.alerts,
    monitoring.dashboard,
    look.report,
    serve.serve,
    serve.mcp,
    try_out.demo,
    try_out.demo_engine,
):
    app.command(command.__name__.rstrip("_").replace("_", "-"))(command)
