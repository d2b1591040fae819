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
from agent_tools.errors import LMCacheToolError, NotLMCacheError, UnsupportedError
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
    assert metrics.hit_rate_percent is None  # without the requested tokens, all that was asked for would be hits
    assert "nobody has tested this version" in metrics.unavailable["hit_rate_percent"]
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


OF_TOKENS = {"hit_rate_percent", "tokens_served", "tokens_computed", "memory_saved_mb", "memory_savings_percent"}
DROPPED = {
    "lmcache_mp_lookups_requests_total": {"total_requests"},
    "lmcache_mp_lookup_requested_tokens_total": OF_TOKENS,
    "lmcache_mp_lookup_hit_l1_tokens_total": OF_TOKENS,
    "lmcache_mp_lookup_hit_l2_tokens_total": OF_TOKENS,
    "lmcache_mp_lookup": {"total_requests", *OF_TOKENS},
    "lmcache_mp_l1_write_chunks_total": {"stored_chunks"},
    "lmcache_mp_event_bus_dropped_events_total": {"dropped_events"},
}
"""Series that each lookup, store or start of the server makes, and the figures that come from each."""


@pytest.mark.parametrize("name", DROPPED)
def test_a_series_that_something_drops_costs_its_figures_alone(name: str, answering: Connect) -> None:
    """LMCache counts these together, so one without the others is no server at rest."""
    whole = metrics_of(answering(ANSWERS))
    left = "".join(line for line in ANSWERS["/metrics"].splitlines(keepends=True) if not line.startswith(name))
    metrics = metrics_of(answering({**ANSWERS, "/metrics": left}))
    changed = {figure for figure in CacheMetrics.model_fields if getattr(metrics, figure) is None is not getattr(whole, figure)}
    by_objects = {"locked_chunks", "kv_bytes_per_token", "tokens_cached", "resident_chunks"}  # hits say how many make a chunk
    assert changed - by_objects == DROPPED[name]
    for figure in changed - by_objects:
        assert name in metrics.unavailable[figure]
        assert "drops it" in metrics.unavailable[figure]
    assert (metrics.tokens.requested == 0) == (metrics.hit_rate_percent is None) == ("tokens.requested" in metrics.unavailable)
    kept = CacheMetrics.model_fields.keys() - changed - {"tokens", "by_model", "by_tenant", "unavailable", "window"}
    assert {one: getattr(metrics, one) for one in kept} == {one: getattr(whole, one) for one in kept}


def test_evictions_that_are_not_there_but_happened_are_unknown(answering: Connect) -> None:
    """Every object that leaves L1 is counted as evicted, so written and resident objects say whether there were any."""
    left = [line for line in ANSWERS["/metrics"].splitlines() if "evicted" not in line]
    calm = metrics_of(answering({**ANSWERS, "/metrics": "\n".join(left) + "\n"}))
    assert calm.evictions == 0  # 39 were written, and 39 are there
    written = [line.replace("39.0", "60.0") if "l1_write" in line else line for line in left]
    metrics = metrics_of(answering({**ANSWERS, "/metrics": "\n".join(written) + "\n"}))
    assert metrics.evictions is None
    assert "lmcache_mp_l1_evicted_chunks_total" in metrics.unavailable["evictions"]


def test_a_server_at_rest_has_counted_nothing(answering: Connect) -> None:
    rest = [line for line in ANSWERS["/metrics"].splitlines() if "dropped_events" in line]
    status = copy.deepcopy(ANSWERS["/status"])
    status["storage_manager"]["l1_managers"]["_default"] |= {"total_object_count": 0, "memory_used_bytes": 0}
    metrics = metrics_of(answering({**ANSWERS, "/status": status, "/metrics": rest[0] + "\n"}))
    assert (metrics.total_requests, metrics.stored_chunks, metrics.evictions, metrics.tokens_served) == (0, 0, 0, 0)


@pytest.mark.parametrize("version", ["0.4.7", "0.5.4", "0.5.5"])
def test_the_same_holds_of_older_servers(version: str, answering: Connect) -> None:
    for part in ("lookup_requested_tokens", "lookup_hit_"):
        answers = recorded(version)
        answers["/metrics"] = "".join(line for line in answers["/metrics"].splitlines(keepends=True) if part not in line)
        metrics = metrics_of(answering(answers))
        assert (metrics.hit_rate_percent, metrics.tokens_served, metrics.tokens.requested) == (None, None, 0)
        assert f"although LMCache {version} counts it" in metrics.unavailable["hit_rate_percent"]
        assert metrics.stored_chunks


@pytest.mark.parametrize("status", [404, 405, 501, 403, 500])
@pytest.mark.parametrize("route", ["/lmc_version", "/config", "/config/adapters", "/quota", "/metrics"])
def test_a_route_that_does_not_answer_costs_its_figures_alone(route: str, status: int, answering: Connect) -> None:
    """A proxy may pass on ``/status`` and not the rest."""
    server = answering({**ANSWERS, route: status})
    snapshot, config = io_loop.run(server.snapshot), io_loop.run(server.config)
    metrics = metrics_between(None, snapshot)
    assert (metrics.total_size_mb, config.max_size_mb, config.eviction_policy) == (16, 16, EvictionPolicy.LRU)
    assert [one.type for one in config.l2_adapters or ()] == ["fs"]
    assert (config.l2_adapters or ())[0].settings_known == (route not in {"/config", "/config/adapters"})
    assert (config.tenant_quotas_mb is None) == (route == "/quota")
    assert (config.l2_store_policy is None) == (config.hash_algorithm is None) == (route == "/config")
    assert (metrics.stored_chunks, metrics.tokens_served) == ((None, None) if route == "/metrics" else (39, 17152))
    if route == "/metrics":
        assert f"{status}" in metrics.unavailable["tokens_served"]
        assert "--disable-metrics" not in metrics.unavailable["tokens_served"]
    assert io_loop.run(server.version) == (None if route == "/lmc_version" else "0.5.6")
    assert ("lmcache_version" in snapshot.notes) == (route == "/lmc_version")
    if route == "/config":
        with pytest.raises(LMCacheToolError, match="/conf"):
            io_loop.run(server.restart_command, None)


@pytest.mark.parametrize("version", ["0.7.0", "unknown", "0.5.7.dev3+g1234", "", None, 7, "0.5", "v0.5.6"])
def test_odd_versions_are_named_and_their_figures_kept(version: Any, answering: Connect) -> None:
    server = answering({**ANSWERS, "/lmc_version": version})
    snapshot = io_loop.run(server.snapshot)
    assert metrics_between(None, snapshot).tokens_served == 17152
    note = snapshot.notes.get("lmcache_version", "")
    assert (note == "") == (version == "v0.5.6")
    assert "  " not in note
    if note:
        assert "is not among the versions that we know (0.4.7 to 0.5.6)" in note


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
