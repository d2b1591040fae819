"""The commands that write what a monitoring system reads."""

from typing import Annotated

import typer

from .running import reported_errors

Job = Annotated[str, typer.Option(help="Name of the job that scrapes the LMCache servers.")]


def alerts(
    job: Job = "lmcache",
    window: Annotated[str, typer.Option(help="Length of the windows over which rates are taken, e.g. 5m.")] = "5m",
) -> None:
    """Print alert rules for Prometheus.

    Save them in a file that rule_files of prometheus.yml names; `promtool check rules FILE` checks it. Let the window be
    four scrape intervals or more.
    """
    with reported_errors():
        from agent_tools.report.alerts import rules

        typer.echo(rules(job, window), nl=False)


def dashboard(job: Job = "lmcache") -> None:
    """Print a dashboard for Grafana, as JSON to import."""
    with reported_errors():
        from agent_tools.report.dashboard import dashboard as written

        typer.echo(written(job))
