"""Fixtures shared by all tests: a real embedded cache under `Operations`, real servers of other kinds, and traffic into them.

Where lmcache is not installed, or with ``LMCACHE_AGENT_TEST_CACHE=simulated``, the cache under `Operations` is a simulated one,
and tests that need a real server are skipped.

Coroutines of the package are run with ``io_loop.run``, as its sync callers do.
"""

import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from forked_lmcache import forking
from hypothesis import settings
from pydantic import SecretStr
from real_cache import Launch, Play, eventually
from simulated_cache import (
    KV_BYTES_PER_TOKEN,
    NEEDS_LMCACHE,
    SIMULATED,
    play_simulated,
    simulated_operations,
    skip_what_needs_extras,
    why_skipped,
)

from agent_tools.arena_file import reserve
from agent_tools.caches.history import History
from agent_tools.caches.registry import Cache, Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.base import silent
from agent_tools.deployments.server.command_line import Flags
from agent_tools.deployments.server.embedded import TOKEN_ENV, EmbeddedDeployment, EmbeddedOptions
from agent_tools.deployments.server.process import LMCACHE, QUIET, ServerProcess
from agent_tools.deployments.simulated.deployment import SimulatedDeployment
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, ConfigUpdate, L2Adapter
from agent_tools.operations import Operations
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplayResult, ReplaySettings, replay

START = ConfigUpdate(max_size_mb=16, eviction_watermark=0.8, eviction_ratio=0.2)
"""How the `cache` fixture hands the embedded cache to each test."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Test modules of optional parts are skipped where what they import is not installed."""
    report = yield
    skip_what_needs_extras(report)
    return report


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background; programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None)  # no example is judged by the clock of a busy machine
settings.load_profile("suite")

WAITING = {"lmcache", "operations"}
"""Fixtures of the tests that wait for servers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose markers ask for a package or a real cache that is not here.

    The files with most tests on servers come first, so that with several processes none is left with a long file at the end.
    """
    on_servers = Counter(item.path for item in items if not WAITING.isdisjoint(getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: -on_servers[item.path])
    for item in items:
        why = why_skipped(item)
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests read no settings file of the person who runs them."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        environment.delenv("LMCACHE_AGENT_SETTINGS", raising=False)
        yield


@pytest.fixture(scope="session")
def lmcache() -> Iterator[None]:
    """Asked for by every fixture that starts a real server. The servers of this process are forked from one that has LMCache."""
    if SIMULATED:
        pytest.skip(NEEDS_LMCACHE)
    with forking(QUIET) as command, pytest.MonkeyPatch.context() as patched:
        patched.setattr("agent_tools.deployments.server.process.LMCACHE", command)
        yield


@pytest.fixture
def not_forked(lmcache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this test start as they do for users."""
    monkeypatch.setattr("agent_tools.deployments.server.process.LMCACHE", LMCACHE)


@pytest.fixture(scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `operations` keeps its change log, locks and server logs."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def arena_folder() -> Iterator[Path]:
    """A folder in shared memory, of this test run only, in which all L1 arenas are made."""
    with tempfile.TemporaryDirectory(prefix="lmcache-agent-tests-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def operations(state_folder: Path, request: pytest.FixtureRequest) -> Iterator[Operations]:
    """Operations on the caches ``default`` (an embedded server of 16 MB) and ``unreachable`` (nothing listens there)."""
    if not SIMULATED:
        request.getfixturevalue("lmcache")
    made = simulated_operations if SIMULATED else partial(_embedded_operations, request.getfixturevalue("arena_folder"))
    operations = made(state_folder)
    yield operations
    io_loop.run(operations.close)


def _embedded_operations(arena_folder: Path, state_folder: Path) -> Operations:
    embedded = EmbeddedOptions(l1_size_mb=16, arena_folder=arena_folder)
    listed = L2Adapter(type="mock", settings={"max_size_gb": 0.01, "mock_bandwidth_gb": 1.0})
    bounds = Bounds(max_size_mb=64, allow_restart=True, l2_adapter=listed)
    default = CacheSettings(bounds=bounds, cooldown_seconds=0, embedded=embedded)
    unreachable = CacheSettings(target="http://127.0.0.1:9", timeout_seconds=1)
    return Operations(Registry(Settings(caches={"default": default, "unreachable": unreachable}, state_folder=state_folder)))


@pytest.fixture
def cache(operations: Operations) -> Cache:
    """The cache of `operations`, set as in `START`, with an empty L1 and no history; its counters go on."""
    cache = operations.registry.get("default")
    io_loop.run(_reset, cache)
    return cache


async def _reset(cache: Cache) -> None:
    await cache.deployment.clear()  # first, since an arena that is drained goes only when it is empty
    config = (await cache.deployment.config()).known()
    wanted = {setting: value for setting, value in START.known().items() if config[setting] != value}
    if wanted:
        await cache.deployment.apply(ConfigUpdate.model_validate(wanted), silent)
    if isinstance(cache.deployment, SimulatedDeployment):
        await cache.deployment._asked(lambda server: setattr(server, "bytes_per_token", KV_BYTES_PER_TOKEN))
    cache.history = History()


@pytest.fixture
def server(lmcache: None, cache: Cache) -> ServerProcess:
    """The process of the embedded cache."""
    assert isinstance(cache.deployment, EmbeddedDeployment)
    return io_loop.run(cache.deployment.started)


@pytest.fixture
def module_token(cache: Cache, server: ServerProcess) -> SecretStr:
    """The token that the module of the embedded server asks for."""
    assert isinstance(cache.deployment, EmbeddedDeployment)
    return SecretStr(cache.deployment._environment[TOKEN_ENV])


@pytest.fixture
def play(cache: Cache, request: pytest.FixtureRequest) -> Play:
    """Replays a log into the embedded cache and returns when the server has counted and logged all of it."""
    if SIMULATED:
        return lambda log, **settings: play_simulated(cache, log, ReplaySettings.model_validate(settings))
    server = request.getfixturevalue("server")

    def play(log: AccessLog, **settings: object) -> ReplayResult:
        before, began = io_loop.run(cache.deployment.snapshot).counters, time.time()
        result = replay(log, server.rpc_url, ReplaySettings.model_validate(settings))
        assert before is not None
        eventually(lambda: io_loop.run(cache.deployment.snapshot).counters.lookups - before.lookups >= result.requests)
        logged = int((log.chunks_per_request[result.hits >= 0] > 0).sum())
        eventually(lambda: len(io_loop.run(cache.deployment.access_log, began) or ()) >= logged)
        return result

    return play


@pytest.fixture(scope="module")
def launch(lmcache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts real servers with any flags, on free ports and with a lookup-hash log; all are stopped at the module's end."""
    processes: list[ServerProcess] = []

    def launch(flags: Flags, environment: Mapping[str, str] | None = None) -> ServerProcess:
        small: Flags = {"--l1-size-gb": 16 / 1024, "--eviction-policy": "LRU", "--supported-transfer-mode": "auto"}
        with pytest.MonkeyPatch.context() as patched:
            if environment and "PYTHONPATH" in environment:  # which may name another LMCache
                patched.setattr("agent_tools.deployments.server.process.LMCACHE", LMCACHE)
            process = ServerProcess.launch(small | flags, tmp_path_factory.mktemp("logs"), extra=environment)
        processes.append(process)
        io_loop.run(process.wait_ready)
        return process

    yield launch
    for process in processes:
        io_loop.run(process.stop)


def listed_adapters(folder: Path) -> list[dict[str, object]]:
    """What the operator of the shared server lists."""
    return [
        {"type": "fs", "base_path": str(folder)},
        {"type": "mock", "max_size_gb": 0.001, "mock_bandwidth_gb": 1},
        {"type": "fs_native", "base_path": "/proc/nowhere"},
    ]


@pytest.fixture
def l2_folder(module_server: ServerProcess) -> Path:
    """The folder of the shared server's listed ``fs`` adapter, empty."""
    folder: Path = module_server.l2_folder  # type: ignore[attr-defined]
    for file in folder.iterdir():
        file.unlink()
    return folder


@pytest.fixture(scope="session")
def module_server(lmcache: None, arena_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server with our module, whose L1 is one devdax arena of 16 MB; the module may make it 64."""
    primary = reserve(arena_folder, 16 * MB)
    folder = tmp_path_factory.mktemp("module-l2")
    config = {"arena_folder": str(arena_folder), "max_l1_mb": 64, "l2_adapters": listed_adapters(folder)}
    module = {"module_path": "agent_tools.server_module", "config": config}
    flags: Flags = {
        "--l1-size-gb": 16 / 1024,
        "--eviction-policy": "LRU",
        "--supported-transfer-mode": "auto",
        "--server-module": json.dumps(module),
        "--l1-devdax-path": str(primary),
        "--no-l1-use-lazy": True,
        "--shm-name": "",
    }
    process = ServerProcess.launch(flags, tmp_path_factory.mktemp("module-logs"))
    try:
        io_loop.run(process.wait_ready)
        primary.unlink()
        process.l2_folder = folder  # type: ignore[attr-defined]
        yield process
    finally:
        primary.unlink(missing_ok=True)
        io_loop.run(process.stop)
