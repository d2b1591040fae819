"""A schedule on LangGraph's server (`langgraph dev`, or a deployment) that tunes a cache every few minutes.

    langgraph dev                                # in another terminal, with this repository's langgraph.json
    python examples/watch_cron.py --cache prod   # every 5 minutes; says what would help, changes nothing
    python examples/watch_cron.py --cache prod --mode auto --schedule "*/10 * * * *"
    python examples/watch_cron.py --cache prod --remove

There is one schedule for each cache: running this again replaces it. Each run has a thread of its own that holds its report.
Studio and the API list the threads; a ``ttl`` for the checkpointer in langgraph.json removes old ones. Runs that overlap do no
harm: a cache is changed by one run at a time, and not before the cool-down after the last change is over.
`lmcache-agent watch` also notices restarts and tells a webhook; see docs/watch.md.
"""

import os
from typing import Annotated, Any

import typer
from langgraph_sdk import get_sync_client

from agent_tools import Mode, TuneContext

MADE_BY = "lmcache watch_cron"


def main(
    cache: Annotated[str, typer.Option(help="Name of the cache in the server's caches.toml.")] = "default",
    schedule: Annotated[str, typer.Option(help="When to run, as cron writes it, UTC.")] = "*/5 * * * *",
    mode: Mode = Mode.RECOMMEND,
    window: Annotated[float, typer.Option(help="Seconds that each run observes.")] = 60,
    url: Annotated[str, typer.Option(help="Address of LangGraph's server.")] = "http://127.0.0.1:2024",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the schedule.")] = False,
) -> None:
    """Make, replace or remove the schedule. The token, if the server asks for one, is read from LMCACHE_AGENT_TOKEN."""
    if mode is Mode.APPROVE:
        raise typer.BadParameter("nobody answers the questions of a schedule; use recommend or auto")
    token = os.environ.get("LMCACHE_AGENT_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    mark = {"made_by": MADE_BY, "cache": cache}
    context = TuneContext(cache=cache, mode=mode, window_seconds=window)
    with get_sync_client(url=url, api_key=None, headers=headers) as client:
        for old in client.crons.search(limit=1000):
            if mark.items() <= (old["metadata"] or {}).items():
                client.crons.delete(old["cron_id"])
        for old in client.assistants.search(metadata=mark, limit=1000):
            client.assistants.delete(old["assistant_id"])
        if remove:
            print(f"{cache} has no schedule any more")
            return
        # The settings belong to an assistant: LangGraph's server (0.8.7) starts no scheduled run that has a context of its own
        # where callers are authenticated.
        assistant = client.assistants.create(
            "tune_cache", context=context.model_dump(mode="json", exclude_none=True), metadata=mark, name=f"watch {cache}"
        )
        made: Any = client.crons.create(
            assistant["assistant_id"], schedule=schedule, input={}, metadata=mark, on_run_completed="keep"
        )
        print(f"{cache} is tuned in mode {mode.value} at {schedule}; next at {made.get('next_run_date')}")


if __name__ == "__main__":
    typer.run(main)
