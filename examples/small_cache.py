"""A cache for the other examples to work on: a private `lmcache server` with far too small an L1, and agents that keep it busy.

The server ends with the program that started it. So run this one beside programs that come and go, until Ctrl-C; it names its
server in a file of settings for them:

    python examples/small_cache.py caches.toml &
    LMCACHE_AGENT_SETTINGS=caches.toml python examples/orchestrator.py start
    LMCACHE_AGENT_SETTINGS=caches.toml langgraph dev
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from agent_tools import Operations
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import replay
from agent_tools.workload.schedule import ReplaySettings

SMALL = "small"
"""Its name in `small_cache`'s directory."""
AGENTS = AgentTraffic(requests=200, conversations=20, turns=10, tool_tokens=600, seed=1).generate()
"""What the agents ask: 20 conversations at a time, whose prompts together are about three times what L1 holds."""
AT_PACE = ReplaySettings(pace=AGENTS.duration / 3)
"""How it is replayed, with real KV: in 3 seconds."""

CACHES = """\
[caches.default]
target = "{url}"
access_log = "{access_log}"
arena_folder = "{arena_folder}"
bounds = {{ max_size_mb = 64 }}
cooldown_seconds = 0
"""


@contextmanager
def small_cache() -> Iterator[tuple[Operations, ServerProcess]]:
    """Operations on a running server of 4 MB that may grow to 64; it is stopped at the end."""
    settings = CacheSettings(embedded=EmbeddedOptions(l1_size_mb=4), bounds=Bounds(max_size_mb=64), cooldown_seconds=0)
    operations = Operations(Registry(Settings(caches={SMALL: settings})))
    try:
        deployment = operations.registry.get(SMALL).deployment
        assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  its settings say so
        yield operations, io_loop.run(deployment.started)
    finally:
        io_loop.run(operations.close)


def main(settings: Annotated[Path, typer.Argument(help="The file to write; there must be none.")]) -> None:
    """Keep a small cache busy until Ctrl-C, and name it in a file of settings."""
    for end in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore Ctrl-C
        signal.signal(end, signal.default_int_handler)
    with small_cache() as (_, server), settings.open("x", encoding="utf-8") as file:
        try:
            access_log = server.folder / "lookups"
            file.write(CACHES.format(url=server.http_url, access_log=access_log, arena_folder=EmbeddedOptions().arena_folder))
            file.flush()
            with suppress(KeyboardInterrupt):
                while True:
                    replay(AGENTS, server.rpc_url, AT_PACE)
        finally:
            settings.unlink()


if __name__ == "__main__":
    typer.run(main)
