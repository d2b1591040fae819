"""Claims about servers older and newer than 0.5.6: their figures are right or unknown, never zeros, and changes need a restart.

The answers in `older_versions` were recorded on real servers after real traffic (0.5.0: without any). The last tests start a real
0.4.7 where `make test-oldest` has installed it.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from real_cache import Launch, eventually
from recorded_answers import ANSWERS

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.base import silent
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.versions import release_of
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.errors import NotLMCacheError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import CacheMetrics, ConfigUpdate, EvictionPolicy, L2Adapter, SupportLevel
from agent_tools.operations import Operations

RECORDED = Path(__file__).with_name("older_versions")
OLDEST = Path(__file__).parents[2] / ".oldest-lmcache"
VERSIONS = ("0.4.7", "0.5.0", "0.5.4", "0.5.5")
HITS = {"0.4.7": (51200, 25600), "0.5.0": (0, 0), "0.5.4": (41472, 32960), "0.5.5": (41472, 32960)}
"""Tokens asked for and found, as the client that made the traffic counted them."""

Connect = Callable[[Mapping[str, Any]], ServerDeployment]


def recorded(version: str) -> dict[str, Any]:
    """The answers of a real server; a number is the status of an error."""
    answers: dict[str, Any] = json.loads((RECORDED / f"{version}.json").read_text())
    return {**answers, "/metrics": "\n".join(answers["/metrics"]) + "\n"}


def newer() -> dict[str, Any]:
    """What a version could answer that nobody has seen: the counter of stored chunks has another name."""
    answers = copy.deepcopy(ANSWERS)
    metrics = answers["/metrics"].replace("l1_write_chunks", "l1_put_chunks").replace("lookup_requested_tokens", "lookup_tokens")
    return {**answers, "/lmc_version": "0.6.0rc1", "/metrics": metrics}


@pytest.fixture
def answering() -> Iterator[Connect]:
    """Connects to a server that gives these answers, and 404 for everything else."""
    made: list[ServerDeployment] = []

    def connect(answers: Mapping[str, Any]) -> ServerDeployment:
        def answer(request: httpx.Request) -> httpx.Response:
            found = answers.get(request.url.path, 404)
            if request.url.path.startswith("/quota/"):
                name = request.url.path.rpartition("/")[2]
                usage = {"cache_salt": name, "current_usage_gb": 0.0, "limit_gb": 0.0, "exists": False}
                return httpx.Response(200, json=usage)
            if isinstance(found, int):
                return httpx.Response(found, json={"detail": "Not Found" if found == 404 else "not supported"})
            return httpx.Response(200, text=found) if request.url.path == "/metrics" else httpx.Response(200, json=found)

        made.append(ServerDeployment("http://127.0.0.1:1", transport=httpx.MockTransport(answer)))
        return made[-1]

    yield connect
    for one in made:
        io_loop.run(one.close)


def metrics_of(server: ServerDeployment) -> CacheMetrics:
    return metrics_between(None, io_loop.run(server.snapshot))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_hit_rate_is_that_which_the_clients_saw(version: str, answering: Connect) -> None:
    server = answering(recorded(version))
    metrics = metrics_of(server)
    asked, found = HITS[version]
    assert (metrics.tokens.requested, metrics.tokens.hit) == (asked, found)
    assert metrics.hit_rate_percent == (100 * found / asked if asked else None)
    assert metrics.total_size_mb == 16
    assert io_loop.run(server.version) == version
    assert io_loop.run(server.snapshot).health.healthy


@pytest.mark.parametrize("version", ["0.4.7", "0.5.0", "0.5.4"])
def test_what_an_older_server_does_not_count_is_unknown_and_not_0(version: str, answering: Connect) -> None:
    metrics = metrics_of(answering(recorded(version)))
    for figure in ("total_requests", "short_prompts", "unregistered_lookups"):
        assert getattr(metrics, figure) is None
        assert f"LMCache {version} does not count it" in metrics.unavailable[figure]


def test_hits_in_l2_are_counted_from_the_loads(answering: Connect) -> None:
    """Where a version counts hits of both tiers together, what was loaded from L2 is the part of L2."""
    answers = recorded("0.4.7")
    answers["/status"]["non_cuda_context_meta"] = {"7000": {"model_name": "toy/m", "world_size": 1}}
    answers["/metrics"] += "lmcache_mp_l2_prefetch_load_completed_chunks_total 100.0\n"
    tokens = metrics_of(answering(answers)).tokens
    assert (tokens.hit_l1, tokens.hit_l2) == (25600 - 100 * 64, 100 * 64)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_configuration_is_read_and_the_settings_of_l2_are_unknown(version: str, answering: Connect) -> None:
    config = io_loop.run(answering(recorded(version)).config)
    assert (config.max_size_mb, config.eviction_policy, config.eviction_watermark) == (16, EvictionPolicy.LRU, 0.8)
    (adapter,) = config.l2_adapters or ()
    assert adapter.type == "fs"
    assert not adapter.settings_known
    assert adapter.size_mb is None
    assert L2Adapter(type="fs").settings_known


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_live_and_nothing_advises_what_only_newer_servers_have(version: str, answering: Connect) -> None:
    server = answering(recorded(version))
    support = io_loop.run(server.support)
    assert not [one for one in support.values() if one.level is SupportLevel.LIVE]
    assert not [one for one in support.values() if "server_module" in one.reason or "devdax" in one.reason]
    arc = io_loop.run(server.support, ConfigUpdate(eviction_policy=EvictionPolicy.ARC))["eviction_policy"]
    assert (arc.level, version in arc.reason) == (SupportLevel.UNSUPPORTED, True)
    with pytest.raises(UnsupportedError, match=f"LMCache {version} changes it by a restart only.*Nothing was changed"):
        io_loop.run(server.apply, ConfigUpdate(eviction_watermark=0.5), silent)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_restart_command_says_what_is_not_known_and_keeps_the_rest(version: str, answering: Connect) -> None:
    command = io_loop.run(answering(recorded(version)).restart_command, ConfigUpdate(eviction_watermark=0.5))
    assert "--eviction-trigger-watermark 0.5" in command
    assert '"***": "unknown: LMCache up to 0.5.5 does not report' in command
    assert ("--shm-name ''" in command) == (recorded(version).get("/config", {}) != 404 or version == "0.4.7")


@pytest.mark.parametrize("version", ["0.4.7", "0.5.0"])
def test_a_clear_that_would_drop_locked_objects_is_refused(version: str, answering: Connect) -> None:
    with pytest.raises(UnsupportedError, match=f"LMCache {version} clears L1 only together with what requests hold locked"):
        io_loop.run(answering(recorded(version)).clear)


@pytest.mark.parametrize("version", ["0.4.7", "0.5.0"])
def test_the_usage_of_tenants_is_unknown_where_it_always_reads_0(version: str, answering: Connect) -> None:
    usage = io_loop.run(answering(recorded(version)).tenants)
    assert all(one.l2_mb is None for one in usage.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_status_says_what_the_version_means(version: str, answering: Connect) -> None:
    notes = io_loop.run(answering(recorded(version)).snapshot).notes
    assert notes["lmcache_version"].startswith(f"LMCache {version} is older than 0.5.6: settings change by a restart only")


def test_the_newest_needs_no_note(answering: Connect) -> None:
    assert io_loop.run(answering(ANSWERS).snapshot).notes == {}


def test_a_newer_version_is_named_and_what_it_does_not_export_is_unknown(answering: Connect) -> None:
    server = answering(newer())
    snapshot = io_loop.run(server.snapshot)
    metrics = metrics_between(None, snapshot)
    assert "LMCache 0.6.0rc1 is not among the versions that we know (0.4.7 to 0.5.6)" in snapshot.notes["lmcache_version"]
    assert metrics.stored_chunks is None
    assert "nobody has tested this version" in metrics.unavailable["stored_chunks"]
    assert metrics.total_requests == 9  # this one was found


def test_a_newer_version_with_answers_of_another_shape_is_named(answering: Connect) -> None:
    answers = newer()
    answers["/status"] = {"caches": []}
    with pytest.raises(NotLMCacheError, match=r"LMCache 0\.6\.0rc1 answers in a way that we do not know"):
        io_loop.run(answering(answers).snapshot)


@pytest.mark.parametrize(
    "answers", [{"/api/status": {}}, {"/lmc_version": "0.4.4", "/status": {}}, {"/lmc_version": "0.3.15"}], ids=str
)
def test_a_server_that_is_too_old_is_told_to_be_upgraded(answers: dict[str, Any], answering: Connect) -> None:
    with pytest.raises(UnsupportedError, match=r"does not give these figures; upgrade it to 0\.4\.7 or later"):
        io_loop.run(answering(answers).snapshot)


def test_something_else_is_still_called_something_else(answering: Connect) -> None:
    with pytest.raises(NotLMCacheError, match="--http-port"):
        io_loop.run(answering({"/status": {}}).snapshot)


def test_an_upgrade_at_the_same_address_is_noticed(answering: Connect) -> None:
    answers = {**recorded("0.5.5")}
    server = answering(answers)
    assert io_loop.run(server.snapshot).version == "0.5.5"
    answers.update(ANSWERS)
    assert io_loop.run(server.snapshot).version == "0.5.6"


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.5.6", (0, 5, 6)), ("v0.5.7.dev3+g12", (0, 5, 7)), ("0.5", None), ("unknown", None), ("1.0.0", (1, 0, 0))],
)
def test_versions_are_read_whatever_follows_the_numbers(text: str, number: object) -> None:
    assert release_of(text).number == number


@pytest.fixture
def oldest(launch: Launch) -> Any:
    """A real server 0.4.7 of 16 MB and what speaks to it."""
    if not OLDEST.is_dir():
        pytest.skip("LMCache 0.4.7 is not installed beside the newest: make test-oldest installs it")
    environment = {"PYTHONPATH": str(OLDEST)}
    process = launch({"--chunk-size": 64, "--shm-name": ""}, environment)

    def play(prompts: int) -> dict[str, int]:
        script = [sys.executable, str(Path(__file__).with_name("old_engine.py")), process.rpc_url, str(prompts)]
        quiet = {"LMCACHE_LOG_LEVEL": "ERROR", "LMCACHE_DISABLE_BANNER": "1", "LMCACHE_TRACK_USAGE": "false"}
        whole = {**os.environ, **environment, **quiet}
        done = subprocess.run(script, check=False, env=whole, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return process, play


def test_a_real_oldest_server_is_read_right_under_traffic(oldest: Any, connect: Any) -> None:
    process, play = oldest
    server = connect(process.http_url, access_log=process.folder / "lookups")
    before = io_loop.run(server.snapshot)
    outcome = play(20)
    eventually(lambda: metrics_between(before, io_loop.run(server.snapshot)).tokens.requested == 64 * outcome["asked"], 30)
    metrics = metrics_between(before, io_loop.run(server.snapshot))
    assert outcome == {"asked": 400, "found": 200}
    assert (metrics.tokens.hit, metrics.stored_chunks, metrics.total_requests) == (64 * 200, 200, None)
    log = io_loop.run(server.access_log)
    assert (len(log), int(log.chunks_per_request.sum())) == (40, 400)
    config = io_loop.run(server.config)
    assert (config.max_size_mb, config.chunk_size, config.l2_adapters) == (16, 64, ())
    assert all(one.level is not SupportLevel.LIVE for one in io_loop.run(server.support).values())
    with pytest.raises(UnsupportedError, match="requests hold locked"):
        io_loop.run(server.clear)
    for verb in (
        partial(server.trim, 0),
        partial(server.delete, "toy/m", ["00"], ""),
        partial(server.delete_prefix, "toy/m", [1] * 64, ""),
        partial(server.warm, "toy/m", [1] * 64, ""),
    ):
        with pytest.raises(UnsupportedError, match=r"LMCache 0\.4\.7 has no routes to look for, load or delete single chunks"):
            io_loop.run(verb)


def test_a_forecast_of_an_oldest_server_advises_no_module(oldest: Any, tmp_path: Path) -> None:
    operations = Operations(Registry(Settings(caches={"prod": CacheSettings(target=oldest[0].http_url)}, state_folder=tmp_path)))
    try:
        with pytest.raises(UnsupportedError, match="start it with --lookup-hash-log-dir and name that folder"):
            io_loop.run(operations.forecast, "prod")
    finally:
        io_loop.run(operations.close)
