"""Claims about a server without our module: start-up flags stay, and what is not known by HTTP comes from its lookup-hash log."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_cache import Launch, eventually
from real_engine import engine
from real_logs import CHUNK_SIZE, conversations, log_of

from agent_tools.deployments.base import silent
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import SettingsError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate, SupportLevel
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplayResult, ReplaySettings, replay

Connect = Callable[..., ServerDeployment]
CHUNK_BYTES = 128 * CHUNK_SIZE


@pytest.fixture(scope="module")
def process(launch: Launch) -> ServerProcess:
    return launch({})


@pytest.fixture
def plain(connect: Connect, process: ServerProcess) -> ServerDeployment:
    """A server of 16 MB whose log we can read, with an empty L1."""
    deployment = connect(process.http_url, access_log=process.folder / "lookups")
    io_loop.run(deployment.clear)
    return deployment


def play(plain: ServerDeployment, process: ServerProcess, log: AccessLog, **settings: object) -> ReplayResult:
    """Replay a log, and wait until the server has logged it."""
    began = time.time()
    with engine(process, str(settings.get("model", "replay")), 1):  # an engine's registration tells the model's world size
        result = replay(log, process.rpc_url, ReplaySettings.model_validate(settings))
        io_loop.run(plain.world_sizes)
    eventually(lambda: len(io_loop.run(plain.access_log, began) or ()) >= result.requests)
    return result


def test_before_the_first_lookup_there_is_no_access_log(plain: ServerDeployment, connect: Connect, tmp_path: Path) -> None:
    assert io_loop.run(plain.access_log) is None
    assert io_loop.run(connect(plain.admin.base_url, access_log=tmp_path).access_log) is None


def test_a_folder_for_the_access_log_that_is_not_there_is_named(
    plain: ServerDeployment, connect: Connect, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="missing does not exist on this machine"):
        io_loop.run(connect(plain.admin.base_url, access_log=tmp_path / "missing").access_log)


def test_without_a_folder_there_is_no_access_log_and_no_trimming(
    plain: ServerDeployment, connect: Connect, process: ServerProcess
) -> None:
    blind = connect(plain.admin.base_url)
    play(plain, process, log_of(range(4)))
    assert io_loop.run(blind.access_log) is None
    with pytest.raises(UnsupportedError, match="--lookup-hash-log-dir"):
        io_loop.run(blind.trim, 0)


def test_it_has_no_module_and_its_flags_need_a_restart(plain: ServerDeployment) -> None:
    assert io_loop.run(plain.module) is None
    support = io_loop.run(plain.support)
    for setting in ("eviction_policy", "auto_eviction", "eviction_watermark", "eviction_ratio", "l2_adapters"):
        assert support[setting].level is SupportLevel.RESTART
        assert "--server-module agent_tools.server_module" in support[setting].reason


def test_a_setting_that_needs_a_restart_is_refused_with_the_new_command_line(plain: ServerDeployment) -> None:
    with pytest.raises(UnsupportedError, match=r"Nothing was changed.*--eviction-trigger-watermark 0\.5"):
        io_loop.run(plain.apply, ConfigUpdate(eviction_watermark=0.5, max_size_mb=32), silent)
    assert io_loop.run(plain.config).max_size_mb == 16


def test_chunks_are_deleted_by_their_hash_and_tenant(plain: ServerDeployment, process: ServerProcess) -> None:
    began, log = time.time(), log_of(range(8), tenants=("acme",))
    play(plain, process, log, model="deleted")
    seen = io_loop.run(plain.access_log, began)
    assert seen is not None
    assert seen.hashes is not None
    hashes = [seen.hashes[chunk].tobytes().hex() for chunk in seen.request(0)]
    assert io_loop.run(plain.delete, "deleted", hashes[4:], "other") == 0
    assert io_loop.run(plain.delete, "deleted", [f"0x{one}" for one in hashes[4:]], "acme") == 4
    assert play(plain, process, log, model="deleted").hits.tolist() == [4]


def test_trim_drops_what_the_log_says_was_asked_for_longest_ago(plain: ServerDeployment, process: ServerProcess) -> None:
    log = log_of(*conversations(10, 16), tenants=("acme", "globex"))
    play(plain, process, log, clients=1)
    io_loop.run(plain.trim, 70 * CHUNK_BYTES)
    assert io_loop.run(plain.snapshot).l1_used_bytes == 70 * CHUNK_BYTES
    assert play(plain, process, log, clients=1).hits.tolist() == [0, 0, 0, 0, 0, 6, 16, 16, 16, 16]


def test_entries_of_a_cache_without_a_listing_tier_are_refused_with_the_reason(plain: ServerDeployment) -> None:
    with pytest.raises(UnsupportedError, match=r"cannot list its entries .*503.*only entries of s3 L2 adapters.*--server-module"):
        io_loop.run(plain.entries, 10)
