"""Claims about a server with plain memory as L1 and a file system as L2: warming from it, and starting one like it again."""

import contextlib
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from real_cache import Launch, eventually
from real_engine import engine as registered
from real_logs import CHUNK_SIZE, log_of

from agent_tools.deployments.base import silent
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import LMCACHE, ServerProcess, free_port
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.errors import UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import CacheConfig, ConfigUpdate, L2Adapter, SupportLevel
from agent_tools.workload.replay import ReplaySettings, _kv_client, replay
from agent_tools.workload.tokens import prompt

Connect = Callable[..., ServerDeployment]
LOG = log_of(range(8), tail=100)
TOKENS = prompt(LOG.request(0), int(LOG.tokens[0]), CHUNK_SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l2")


@pytest.fixture(scope="module")
def process(launch: Launch, folder: Path) -> ServerProcess:
    adapter = {"type": "fs", "base_path": str(folder)}
    return launch({"--l2-adapter": [json.dumps(adapter)], "--eviction-trigger-watermark": 0.7, "--l2-prefetch-policy": "retain"})


@pytest.fixture
def two_tiers(connect: Connect, process: ServerProcess, arena_folder: Path) -> ServerDeployment:
    return connect(process.http_url, arena_folder=arena_folder)


def test_an_l2_adapter_is_read_as_it_was_given(two_tiers: ServerDeployment, folder: Path) -> None:
    config = io_loop.run(two_tiers.config)
    assert config.l2_adapters == (L2Adapter(type="fs", settings={"base_path": str(folder)}),)
    assert (config.eviction_watermark, config.l2_prefetch_policy) == (0.7, "retain")


def test_a_prefix_is_deleted_by_its_tokens(two_tiers: ServerDeployment, process: ServerProcess) -> None:
    log = log_of(range(500, 504), tail=30)
    tokens = prompt(log.request(0), int(log.tokens[0]), CHUNK_SIZE)
    with registered(process, "doomed", 1):
        replay(log, process.rpc_url, ReplaySettings(clients=1, model="doomed"))
        io_loop.run(two_tiers.world_sizes)
    assert eventually(lambda: io_loop.run(two_tiers.delete_prefix, "doomed", tokens[: 2 * CHUNK_SIZE], "")) == 2
    assert io_loop.run(two_tiers.delete_prefix, "doomed", tokens[: 2 * CHUNK_SIZE], "") == 0
    assert io_loop.run(two_tiers.delete_prefix, "doomed", tokens, "") == 2  # the rest of it
    assert io_loop.run(two_tiers.delete_prefix, "doomed", tokens[:10], "") == 0


def test_the_size_of_plain_memory_needs_a_restart_even_with_a_folder_for_arenas(two_tiers: ServerDeployment) -> None:
    support = io_loop.run(two_tiers.support)["max_size_mb"]
    assert support.level is SupportLevel.RESTART
    assert "--l1-devdax-path" in support.reason
    with pytest.raises(UnsupportedError, match=r"--l1-size-gb 0\.03125"):
        io_loop.run(two_tiers.apply, ConfigUpdate(max_size_mb=32), silent)


def test_a_prefix_of_a_model_that_no_engine_registered_cannot_be_warmed(two_tiers: ServerDeployment) -> None:
    with pytest.raises(UnsupportedError, match=r"no engine has registered the model nobody.*Nothing was loaded"):
        io_loop.run(two_tiers.warm, "nobody", TOKENS, "")


def test_a_known_prefix_is_warmed_from_l2(two_tiers: ServerDeployment, process: ServerProcess, folder: Path) -> None:
    with engine(process):
        replay(LOG, process.rpc_url, ReplaySettings(model="warm"))
        eventually(lambda: len(list(folder.iterdir())) >= 8)
        io_loop.run(two_tiers.clear)
        assert io_loop.run(two_tiers.snapshot).resident_objects == 0
        warmed = io_loop.run(two_tiers.warm, "warm", TOKENS, "")
        assert (warmed.requested_chunks, warmed.found_chunks) == (8, 8)
        assert io_loop.run(two_tiers.snapshot).resident_objects == 8
        before = io_loop.run(two_tiers.snapshot)
        replay(LOG, process.rpc_url, ReplaySettings(model="warm"))
        eventually(lambda: metrics_between(before, io_loop.run(two_tiers.snapshot)).total_requests)
        tokens = metrics_between(before, io_loop.run(two_tiers.snapshot)).tokens
        assert (tokens.hit_l1, tokens.hit_l2) == (8 * CHUNK_SIZE, 0)


def test_a_prefix_that_nobody_stored_is_not_found(two_tiers: ServerDeployment, process: ServerProcess) -> None:
    with engine(process):
        warmed = io_loop.run(two_tiers.warm, "warm", [1] * 600, "")
    assert (warmed.requested_chunks, warmed.found_chunks) == (2, 0)


def test_a_prefix_shorter_than_a_chunk_has_nothing_to_warm(two_tiers: ServerDeployment, process: ServerProcess) -> None:
    with engine(process):
        warmed = io_loop.run(two_tiers.warm, "warm", TOKENS[:100], "")
    assert (warmed.requested_chunks, warmed.found_chunks) == (0, 0)
    assert "shorter than one chunk" in warmed.message


def test_the_restart_command_starts_a_server_with_the_changed_settings_and_all_others(
    two_tiers: ServerDeployment, connect: Connect
) -> None:
    before = io_loop.run(two_tiers.config)
    update = ConfigUpdate(max_size_mb=8, eviction_ratio=0.5, chunk_size=128)
    line = io_loop.run(two_tiers.restart_command, update)
    assert line is not None
    program, *arguments = shlex.split(line)
    assert program == "lmcache"
    ports = {"--port": free_port(), "--http-port": free_port()}
    arguments += [str(part) for flag in ports.items() for part in flag]  # the last one given counts
    started = subprocess.Popen([*LMCACHE, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{ports['--http-port']}"
        eventually(lambda: started.poll() is not None or answers(url), seconds=60)
        after = io_loop.run(connect(url).config)
    finally:
        started.terminate()
        started.wait(20)
    changed = CacheConfig(max_size_mb=8, eviction_ratio=0.5, chunk_size=128, min_prefix_length=128).known()
    assert after.known() == before.known() | changed


@contextlib.contextmanager
def engine(process: ServerProcess) -> Iterator[None]:
    """An engine that is registered for model ``warm``, as a prefetch needs one."""
    kv_client = _kv_client()
    connection = kv_client.Connection(process.rpc_url, 10, threading.Event())
    client = kv_client.KVClient(connection, 1, ("warm",), 128)
    try:
        yield
    finally:
        client.close()
        connection.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/status").status_code == 200
    except httpx.TransportError:
        return False
