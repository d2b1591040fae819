"""The command that looks after caches until it is stopped."""

import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, Mode, VerifySeconds
from .running import opened

if TYPE_CHECKING:
    from agent_tools.caches.settings import Settings
    from agent_tools.watching.event import Event
    from agent_tools.watching.webhook import Webhook


def watch(
    cache: Annotated[
        list[str], typer.Option("--cache", "-c", help="Name of a cache (repeat it). The name of a fleet means all its servers.")
    ],
    mode: Annotated[
        Mode | None, typer.Option(help="By default max_mode of the cache's entry, or approve where the entry states none.")
    ] = None,
    every: Annotated[float, typer.Option(min=1, help="Seconds from one look to the next.")] = 120,
    verify_seconds: VerifySeconds = 300,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL|env:NAME", help="Where each event is sent, by POST as JSON. By default as in the settings."),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve /metrics on this port of 127.0.0.1; 0 takes a free port.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look every few minutes, and tune within the mode.

    Restarts of the cache, settings that others changed, and live changes that a restart lost are noticed. Mode approve changes
    nothing and says which command would. Ctrl-C or SIGTERM ends the watch; another one continues from the change log.
    """
    with opened(None) as (operations, _):
        from agent_tools.io_loop import io_loop
        from agent_tools.models import Mode as AnyMode
        from agent_tools.plain import printable
        from agent_tools.tuning.terminal import err, say
        from agent_tools.watching.watch import Watch

        def tell(event: "Event") -> None:
            if as_json:
                typer.echo(event.model_dump_json())
            else:
                typer.echo(printable(f"{event.at:%H:%M:%S} {event}"))

        signal.signal(signal.SIGTERM, _stop)
        watching = Watch(
            operations,
            cache,
            mode=None if mode is None else AnyMode(mode),
            every=every,
            verify_seconds=verify_seconds,
            webhook=_webhook(operations.registry.settings, webhook),
            say=tell,
            log=lambda line: say(line, err),
        )
        with _metrics(operations, watching.figures, metrics_port) as port:
            if port is not None:
                say(f"metrics: http://127.0.0.1:{port}/metrics", err)
            io_loop.run(watching.run)


def _stop(*_: object) -> None:
    raise typer.Exit(0)


def _metrics(operations: Any, figures: Any, port: int | None) -> Any:  # noqa: ANN401  imported where they are used
    if port is None:
        return nullcontext()
    from agent_tools.doors.watch_metrics import watch_metrics

    return watch_metrics(operations, figures, port)


def _webhook(settings: "Settings", given: str | None) -> "Webhook | None":
    """Return the webhook of the command line, else that of the settings, if there is one."""
    from pydantic import SecretStr

    from agent_tools.caches.settings import resolved
    from agent_tools.watching.webhook import Webhook
    from agent_tools.wire.access import Access

    url = SecretStr(given) if given else settings.watch.webhook
    if url is None:
        return None
    headers = {name: resolved(value, "headers", " of the watch") for name, value in settings.watch.headers.items()}
    return Webhook(resolved(url, "webhook", " of the watch"), Access(headers))
