"""Fixtures of the watch: a real server that can be started again at the same address, and one look at it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.base import silent
from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, Mode
from agent_tools.operations import Operations
from agent_tools.watching.event import Event
from agent_tools.watching.look import CacheWatch

FLAGS: Flags = {
    "--l1-size-gb": 16 / 1024,
    "--eviction-policy": "LRU",
    "--supported-transfer-mode": "auto",
    "--server-module": json.dumps({"module_path": "agent_tools.server_module"}),
}


START = ConfigUpdate(eviction_watermark=0.8, eviction_ratio=0.2)
"""What these flags start a server with."""


class Restartable:
    """A server with our module that keeps its address over restarts, and loses its live changes with each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process = self._started(None)
        self.url = self.process.http_url

    def restart(self) -> None:
        ports = self.process.http_port, self.process.rpc_port
        io_loop.run(self.process.stop)
        self.process = self._started(ports)

    def _started(self, ports: tuple[int, int] | None) -> ServerProcess:
        process = ServerProcess.launch(FLAGS, self._folder, ports)
        io_loop.run(process.wait_ready)
        return process


@pytest.fixture(scope="module")
def restartable(lmcache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restartable]:
    """One server for all tests of a module: each start takes seconds."""
    server = Restartable(tmp_path_factory.mktemp("logs"))
    yield server
    io_loop.run(server.process.stop)


@pytest.fixture
def prod(restartable: Restartable) -> Restartable:
    """The server with the settings it starts with."""
    io_loop.run(_reset, restartable.url)
    return restartable


async def _reset(url: str) -> None:
    deployment = ServerDeployment(url)
    try:
        await deployment.apply(START, silent)
    finally:
        await deployment.close()


Caches = Callable[..., Operations]


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Caches]:
    """Makes operations on one cache named ``prod``; all of them share a state folder, unless another is named."""
    made: list[Operations] = []

    def on(url: str, state: str = "state", **settings: object) -> Operations:
        given = {"target": url, "cooldown_seconds": 0, "bounds": Bounds(max_size_mb=64), "timeout_seconds": 5, **settings}
        entry = CacheSettings.model_validate(given)
        made.append(Operations(Registry(Settings(caches={"prod": entry}, state_folder=tmp_path / state))))
        return made[-1]

    yield on
    for one in made:
        io_loop.run(one.close)


class Looks:
    """A watch over ``prod`` whose looks a test asks for, and the events it told."""

    def __init__(self, operations: Operations, mode: Mode = Mode.AUTO) -> None:
        self.events: list[Event] = []
        self._watch = CacheWatch(operations, "prod", mode, every=0.5, verify_seconds=0.5, tell=self.events.append)

    def look(self) -> tuple[str, list[str]]:
        """Look once. Return the result, and what was told by this look, kind first."""
        before = len(self.events)
        result = io_loop.run(self._look)
        return result, [f"{one.kind.value}: {one.text}" for one in self.events[before:]]

    def leave(self) -> None:
        self._watch.leave()

    async def _look(self) -> str:
        return await self._watch.look(anyio.Lock())
