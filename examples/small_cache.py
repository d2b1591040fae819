"""A cache for the other examples: an `lmcache server` with a much too small L1, and agents that keep it busy.

The server ends with this program. Run this program in the background until Ctrl-C; it writes a caches.toml with its server for
the other programs:

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

from agent_tools import Bounds, Operations, Registry, Settings
from agent_tools.caches.settings import CacheSettings
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import replay
from agent_tools.workload.schedule import ReplaySettings

SMALL = "small"
"""Name of the cache in `small_cache`'s settings."""
AGENTS = AgentTraffic(requests=200, conversations=20, turns=10, tool_tokens=600, seed=1).generate()
"""The agents' requests: 20 conversations at a time, whose prompts take about three times the size of L1."""
AT_PACE = ReplaySettings(pace=AGENTS.duration / 3)
"""Replay of the requests with real KV, in 3 seconds."""

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
    """Yield operations on a running server with an L1 of 4 MB that may grow to 64 MB. The server is stopped at the end."""
    settings = CacheSettings(embedded=EmbeddedOptions(l1_size_mb=4), bounds=Bounds(max_size_mb=64), cooldown_seconds=0)
    operations = Operations(Registry(Settings(caches={SMALL: settings})))
    try:
        deployment = operations.registry.get(SMALL).deployment
        assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  set by the settings above
        yield operations, io_loop.run(deployment.started)
    finally:
        io_loop.run(operations.close)


def main(settings: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")]) -> None:
    """Keep a small cache busy until Ctrl-C, and write it into a settings file."""
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
