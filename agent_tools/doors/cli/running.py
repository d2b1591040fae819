"""What every command needs: the operations it calls, its errors as one sentence and an exit code, and its output."""

import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from .options import ExitCode

if TYPE_CHECKING:
    from agent_tools.operations import Operations

T = TypeVar("T")
ACTOR = "command line"


@contextmanager
def opened(
    cache: str | None,
    url: str | None = None,
    *,
    max_size_mb: float | None = None,
    arena_folder: Path | None = None,
    access_log: Path | None = None,
) -> "Iterator[tuple[Operations, str | None]]":
    """Yield operations and the name of the cache: on the caches of the settings, or on the one address given."""
    with reported_errors():
        from agent_tools.caches.registry import Registry
        from agent_tools.caches.settings import CacheSettings, Settings
        from agent_tools.errors import SettingsError
        from agent_tools.io_loop import io_loop
        from agent_tools.models import Bounds
        from agent_tools.operations import Operations

        given = CacheSettings(bounds=Bounds(max_size_mb=max_size_mb), arena_folder=arena_folder, access_log=access_log)
        settings = Settings.load()
        if url is not None:
            # The command line belongs to the operator: only here may a caller give an address.
            settings = Settings(caches={url: given.model_copy(update={"target": url})}, state_folder=settings.state_folder)
        elif given != CacheSettings():
            raise SettingsError(
                "--max-size-mb, --arena-folder and --access-log go with --url; a named cache has them in caches.toml"
            )
        operations = Operations(Registry(settings))
        try:
            yield operations, url or cache
        finally:
            io_loop.run(operations.close)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print an error of ours as one sentence, and exit with its code."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except Exception as error:
        from pydantic import ValidationError

        from agent_tools.errors import LMCacheToolError, NothingToChangeError

        if isinstance(error, NothingToChangeError):
            complain("nothing to change", str(error))
            raise typer.Exit from error
        if isinstance(error, LMCacheToolError):
            complain(error.code, str(error))
            raise typer.Exit(ExitCode.FAILED) from error
        if isinstance(error, ValidationError):
            wrong = ((".".join(map(str, one["loc"])), one["msg"]) for one in error.errors())
            complain("bad value", "; ".join(f"{where}: {what}" if where else what for where, what in wrong))
            raise typer.Exit(ExitCode.USAGE) from error
        raise


def complain(kind: str, text: str) -> None:
    """Print what went wrong to standard error."""
    from agent_tools.plain import sentence

    typer.echo(f"{typer.style(f'{kind}:', fg='red')} {sentence(text)}", err=True)


def show(data: Any, text: str, as_json: bool) -> None:  # noqa: ANN401  any JSON
    """Print a result, as text or as JSON."""
    import json

    from agent_tools.tuning.terminal import say

    if as_json:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    else:
        say(text)


def agreed(question: str, yes: bool) -> bool:
    """Return whether the person at the terminal agrees. A closed standard input is no approval."""
    return yes or (sys.stdin.isatty() and typer.confirm(question, err=True))


def interruptible(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work. Ctrl-C cancels the work, waits until it has cleaned up, and exits with 130."""
    import asyncio

    try:
        return asyncio.run(work())
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the server was stopped", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from error
