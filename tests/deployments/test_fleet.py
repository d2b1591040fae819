"""Claims about a real fleet: `lmcache coordinator`, node-a and node-b that share their L2, node-c without; real traffic."""

import asyncio
import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from fleet_processes import FleetProcesses, engine
from pydantic import SecretStr
from real_cache import eventually
from real_logs import CHUNK_SIZE, conversations, log_of

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.base import silent
from agent_tools.deployments.fleet.coordinator import Coordinator, Prefix
from agent_tools.deployments.fleet.deployment import FleetDeployment
from agent_tools.deployments.fleet.prefix import _chunks
from agent_tools.deployments.server.process import free_port
from agent_tools.deployments.snapshot import metrics_between
from agent_tools.errors import (
    LMCacheToolError,
    NotLMCacheError,
    OutcomeUnknownError,
    OutOfBoundsError,
    SettingsError,
    UnknownCacheError,
    UnreachableError,
    UnsupportedError,
)
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds, CacheEntry, ConfigUpdate, SupportLevel, TenantUsage
from agent_tools.operations import Operations
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.replay import ReplayedModel, ReplaySettings, replay
from agent_tools.workload.tokens import prompt

LOOPBACK = [ip_network("127.0.0.1/32")]
LOG = log_of(range(8), tail=100)
TOKENS = prompt(LOG.request(0), int(LOG.tokens[0]), CHUNK_SIZE)
CHUNK_MB = 128 * CHUNK_SIZE / MB


@pytest.fixture(scope="module")
def processes(lmcache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcesses]:
    processes = FleetProcesses(tmp_path_factory.mktemp("fleet"))
    try:
        yield processes.wait_ready()
    finally:
        processes.stop()


@pytest.fixture
def fleet(processes: FleetProcesses) -> Iterator[FleetDeployment]:
    with connected(processes.url) as fleet:
        yield fleet


@contextlib.contextmanager
def connected(url: str, **options: Any) -> Iterator[FleetDeployment]:
    fleet = FleetDeployment(url, **{"networks": LOOPBACK, **options})
    try:
        yield fleet
    finally:
        io_loop.run(fleet.close)


@pytest.fixture
def coordinator(processes: FleetProcesses) -> Iterator[Coordinator]:
    coordinator = Coordinator(processes.url, 5.0)
    yield coordinator
    io_loop.run(coordinator.close)


@pytest.fixture
def places(coordinator: Coordinator) -> Callable[[str], list[set[str]]]:
    """For each chunk of `TOKENS`, by model: where the coordinator knows it to be, as ``server tier``."""

    def places(model: str) -> list[set[str]]:
        found = io_loop.run(coordinator.chunks, Prefix(model, TOKENS, "", 1, CHUNK_SIZE))
        return [{"all l2" if one.shared else f"{one.server} {one.tier}" for one in chunk.copies} for chunk in found.values()]

    return places


def play(
    processes: FleetProcesses,
    name: str,
    log: AccessLog = LOG,
    model: str = "replay",
    world_size: int = 1,
    *,
    hybrid: bool = False,
) -> int:
    models = {model: ReplayedModel(world_size=world_size, kv_bytes_per_token=128 * world_size, retrieves=not hybrid)}
    return replay(log, processes.servers[name].rpc_url, ReplaySettings(clients=1, model=model, models=models)).hit_chunks


def pin(fleet: FleetDeployment, model: str, tokens: tuple[int, ...], *, pinned: bool, tenant: str = "") -> int:
    return io_loop.run(partial(fleet.pin, model, tokens, tenant, pinned=pinned))


def test_its_members_are_what_the_coordinator_knows_and_are_kept(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    members = io_loop.run(fleet.members)
    assert {name: server.admin.base_url for name, server in members.items()} == {
        name: server.http_url for name, server in processes.servers.items()
    }
    assert io_loop.run(fleet.member, "node-b") is members["node-b"]
    with pytest.raises(UnknownCacheError, match="no server named 'node-z'; it has: node-a, node-b, node-c"):
        io_loop.run(fleet.member, "node-z")
    assert (fleet.backend, fleet.owned, io_loop.run(fleet.version)) == ("fleet", False, "0.5.6")


def test_it_is_the_sum_of_its_servers_and_tells_their_spread(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    before = io_loop.run(fleet.snapshot)
    for name, hits in (("node-a", 0), ("node-a", 8), ("node-c", 0)):
        assert play(processes, name, model="sum") == hits
    eventually(lambda: metrics_between(before, io_loop.run(fleet.snapshot)).total_requests == 3)
    after = io_loop.run(fleet.snapshot)
    metrics = metrics_between(before, after)
    assert (metrics.tokens.requested, metrics.tokens.hit_l1, metrics.total_size_mb) == (24 * CHUNK_SIZE, 8 * CHUNK_SIZE, 48)
    assert (metrics.spread["hit_rate_percent"].best_member, metrics.spread["hit_rate_percent"].worst) == ("node-a", 0)
    assert sorted(after.members) == ["node-a", "node-b", "node-c"]
    assert after.health.healthy


def test_settings_are_those_in_which_all_agree(fleet: FleetDeployment) -> None:
    config = io_loop.run(fleet.config)
    assert (config.max_size_mb, config.chunk_size, config.eviction_watermark) == (16, CHUNK_SIZE, 0.8)
    assert config.tenant_quotas_mb == {}
    assert config.l2_adapters is None
    assert config.differences["l2_adapters"]["node-c"] == []
    assert list(config.differences) == ["l2_adapters"]


def test_settings_of_servers_are_changed_one_by_one(fleet: FleetDeployment) -> None:
    support = io_loop.run(fleet.support)
    assert support["tenant_quotas_mb"].level is SupportLevel.LIVE
    assert "no limit and loses nothing" in support["tenant_quotas_mb"].reason
    assert {one.level for setting, one in support.items() if setting != "tenant_quotas_mb"} == {SupportLevel.UNSUPPORTED}
    with pytest.raises(
        UnsupportedError, match=r"max_size_mb cannot be changed on a fleet.*<fleet>/<server>. Nothing was changed"
    ):
        io_loop.run(fleet.apply, ConfigUpdate(max_size_mb=32, tenant_quotas_mb={"x": 1}), silent)
    assert io_loop.run(fleet.config).tenant_quotas_mb == {}
    with pytest.raises(UnsupportedError, match=r"trim one server as <fleet>/<server>.*node-a, node-b, node-c"):
        io_loop.run(fleet.trim, 0)


def test_entries_come_with_their_hits_and_where_they_are(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    for name in ("node-a", "node-a", "node-a", "node-c"):
        play(processes, name, model="used")
    everywhere = {"node-a (l1)", "node-c (l1)", "all (l2)"}

    def used() -> list[CacheEntry]:
        return [
            one
            for one in io_loop.run(fleet.entries, 1000)
            if one.entry_id.startswith("used@") and set(one.placements) == everywhere and (one.hit_count or 0) >= 2
        ]

    assert eventually(lambda: len(used()) == 8)
    assert all(one.size_mb == CHUNK_MB for one in used())
    hits = [one.hit_count or 0 for one in io_loop.run(fleet.entries, 1000)]
    assert hits == sorted(hits, reverse=True)
    assert len(io_loop.run(fleet.entries, 3)) == 3


def test_quotas_are_set_enforced_and_taken_back(
    fleet: FleetDeployment, coordinator: Coordinator, processes: FleetProcesses
) -> None:
    def in_l2(tenant: str) -> float:
        usage = io_loop.run(fleet.tenants).get(tenant, TenantUsage())
        return usage.l2_mb or 0.0

    play(processes, "node-a", log_of(*conversations(10, 8), tenants=("acme", "globex")), model="quotas")
    full = 40 * CHUNK_MB
    eventually(lambda: in_l2("globex") == pytest.approx(full, abs=1e-4))
    first = tuple(prompt(log_of(range(8)).request(0), 8 * CHUNK_SIZE, CHUNK_SIZE))
    assert pin(fleet, "quotas", first, tenant="acme", pinned=True) == 8

    steps: list[str] = []
    io_loop.run(fleet.apply, ConfigUpdate(tenant_quotas_mb={"acme": 0.5, "_default": 100.3}), steps.append)
    assert io_loop.run(fleet.config).tenant_quotas_mb == {"acme": 0.5, "_default": 100.3}
    assert steps == ["quota of tenant _default: none -> 100.3 MB", "quota of tenant acme: none -> 0.5 MB"]
    eventually(lambda: in_l2("acme") <= 0.5, seconds=30)
    assert io_loop.run(fleet.tenants)["acme"].quota_mb == 0.5
    assert in_l2("globex") == pytest.approx(full, abs=1e-4)  # not listed, and not wiped
    acme = {
        one.prefix_hash
        for one in io_loop.run(fleet.entries, 1000)
        if one.entry_id.endswith("@acme") and "all (l2)" in one.placements
    }
    assert len(acme) <= 16
    assert (
        len(acme & set(io_loop.run(coordinator.chunks, Prefix("quotas", first, "acme", 1, CHUNK_SIZE)))) == 8
    )  # pinned, though the oldest

    io_loop.run(fleet.apply, ConfigUpdate(tenant_quotas_mb={}), silent)
    assert io_loop.run(fleet.config).tenant_quotas_mb == {}
    assert pin(fleet, "quotas", first, tenant="acme", pinned=False) == 8


def test_an_agent_names_a_fleet_and_its_servers(
    processes: FleetProcesses, tmp_path: Path, places: Callable[[str], list[set[str]]]
) -> None:
    play(processes, "node-a", model="agent")
    eventually(lambda: all(places("agent")))
    cache = CacheSettings(
        target=f"fleet:{processes.url}", networks=tuple(LOOPBACK), bounds=Bounds(max_quotas_mb=10), cooldown_seconds=0
    )
    operations = Operations(Registry(Settings(caches={"prod": cache}, state_folder=tmp_path)))
    run = io_loop.run
    try:
        plan = run(operations.plan, "prod", ConfigUpdate(tenant_quotas_mb={"acme": 4}), "test")
        change = run(operations.apply, plan, "test")
        assert change.config.tenant_quotas_mb == {"acme": 4}
        assert run(operations.undo, "prod", change.change_id, "test").config.tenant_quotas_mb == {}
        with pytest.raises(OutOfBoundsError, match="max_quotas_mb"):
            run(operations.plan, "prod", ConfigUpdate(tenant_quotas_mb={"acme": 11}), "test")
        status = run(operations.status, "prod")
        assert (status.backend, status.lmcache_version, status.metrics.total_size_mb) == ("fleet", "0.5.6", 48)
        assert run(operations.status, "prod/node-c").metrics.total_size_mb == 16
        assert run(operations.pin, "prod", "agent", TOKENS, "", "test", "kept").chunks == 8
        assert run(partial(operations.pin, pinned=False), "prod", "agent", TOKENS, "", "test", "no more").chunks == 8
    finally:
        run(operations.close)


@pytest.mark.parametrize(
    ("salt", "why"),
    [("a@b", "or contain"), ("a/b", "or contain"), ("", "must not be empty"), ("x" * 129, "128"), ("config", "another route")],
)
def test_a_quota_of_what_is_no_salt_is_refused_and_nothing_changed(fleet: FleetDeployment, salt: str, why: str) -> None:
    update = ConfigUpdate(tenant_quotas_mb={"acme": 1, salt: 1})
    with pytest.raises(UnsupportedError, match=rf"{why}.*Nothing was changed"):
        io_loop.run(fleet.apply, update, silent)
    assert io_loop.run(fleet.config).tenant_quotas_mb == {}
    assert io_loop.run(fleet.support, update)["tenant_quotas_mb"].level is SupportLevel.UNSUPPORTED


def test_a_prefix_is_warmed_where_an_engine_is_and_who_cannot_is_named(
    fleet: FleetDeployment, processes: FleetProcesses, places: Callable[[str], list[set[str]]]
) -> None:
    play(processes, "node-a", model="warm")
    eventually(lambda: places("warm") == [{"node-a l1", "all l2"}] * 8)
    with engine(processes.servers["node-b"], "warm"):
        warmed = io_loop.run(fleet.warm, "warm", TOKENS, "")
    assert (warmed.requested_chunks, warmed.found_chunks) == (8, 8)
    assert warmed.message.startswith(
        "chunks of the prefix: node-b has 8 of 8 in L1; not on node-a: no engine has registered this model"
    )
    eventually(lambda: places("warm") == [{"node-a l1", "node-b l1", "all l2"}] * 8)
    with pytest.raises(UnsupportedError, match=r"node-a: no engine .*node-b: no engine .*node-c: no engine .*nothing was loaded"):
        io_loop.run(fleet.warm, "warm", TOKENS, "")


def test_a_prefetch_is_told_once(coordinator: Coordinator, processes: FleetProcesses) -> None:
    play(processes, "node-a", model="once")
    prefix = Prefix("once", TOKENS, "", 1, CHUNK_SIZE)
    with engine(processes.servers["node-a"], "once"):
        request_id = io_loop.run(coordinator.prefetch, "node-a", prefix)
        assert request_id is not None
        assert eventually(lambda: io_loop.run(coordinator.prefetched, "node-a", request_id)) == (8, 8)
    with pytest.raises(OutcomeUnknownError, match=r"unknown.*reports the end of a prefetch only once"):
        io_loop.run(coordinator.prefetched, "node-a", request_id)


def test_a_server_that_left_since_it_was_listed_is_told(coordinator: Coordinator, processes: FleetProcesses) -> None:
    prefix = Prefix("gone", TOKENS, "", 1, CHUNK_SIZE)
    with pytest.raises(UnknownCacheError, match="the server has left the fleet; nothing was deleted"):
        io_loop.run(coordinator.delete, "node-z", prefix, "all")
    processes.register("node-y", "127.0.0.1", free_port())
    with pytest.raises(UnreachableError, match="cannot reach the server; nothing was loaded"):
        io_loop.run(coordinator.prefetch, "node-y", prefix)
    processes.deregister("node-y")


def test_a_prefix_is_deleted_everywhere_but_what_is_pinned_stays(
    fleet: FleetDeployment, processes: FleetProcesses, places: Callable[[str], list[set[str]]]
) -> None:
    for name in ("node-a", "node-b", "node-c"):
        play(processes, name, model="doomed")
    eventually(lambda: places("doomed") == [{"node-a l1", "node-b l1", "node-c l1", "all l2"}] * 8)
    start = TOKENS[: 3 * CHUNK_SIZE + 50]
    assert pin(fleet, "doomed", start, pinned=True) == 3
    assert pin(fleet, "doomed", start, pinned=True) == 3  # and not pinned twice
    assert io_loop.run(fleet.delete_prefix, "doomed", TOKENS, "") == 5
    eventually(lambda: places("doomed") == [{"node-a l1", "node-b l1", "all l2"}] * 3 + [set()] * 5)
    with pytest.raises(UnsupportedError, match=r"all 3 chunks of the prefix are pinned: unpin it first. Nothing was deleted"):
        io_loop.run(fleet.delete_prefix, "doomed", start, "")
    assert pin(fleet, "doomed", start, pinned=False) == 3
    assert pin(fleet, "doomed", start, pinned=False) == 0
    assert io_loop.run(fleet.delete_prefix, "doomed", TOKENS, "") == 3
    eventually(lambda: places("doomed") == [set()] * 8)
    with engine(processes.servers["node-c"], "doomed"):
        assert io_loop.run(fleet.delete_prefix, "doomed", TOKENS, "") == 0


def test_a_prefix_that_the_directory_does_not_know_yet_is_deleted(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    play(processes, "node-c", model="fresh")
    with engine(processes.servers["node-c"], "fresh"):
        assert eventually(lambda: io_loop.run(fleet.delete_prefix, "fresh", TOKENS, "")) == 8
    assert play(processes, "node-c", model="fresh") == 0


def test_a_prefix_is_deleted_in_every_world_size_in_which_a_server_has_it(
    fleet: FleetDeployment, processes: FleetProcesses, coordinator: Coordinator
) -> None:
    for name, world_size in (("node-a", 3), ("node-c", 1)):
        play(processes, name, model="mixed", world_size=world_size)
    eventually(lambda: io_loop.run(coordinator.world_sizes, "mixed") == {1, 3})
    three = Prefix("mixed", TOKENS, "", 3, CHUNK_SIZE)
    eventually(lambda: all(one.copies for one in io_loop.run(coordinator.chunks, three).values()))
    assert io_loop.run(fleet.delete_prefix, "mixed", TOKENS, "") == 16
    assert play(processes, "node-a", model="mixed", world_size=3) == 0
    assert play(processes, "node-c", model="mixed") == 0


def test_what_an_engine_of_another_world_size_left_behind_is_deleted_too(
    fleet: FleetDeployment, processes: FleetProcesses, coordinator: Coordinator
) -> None:
    play(processes, "node-a", model="left", world_size=2)  # its engine is gone afterwards, and no server knows of it
    play(processes, "node-c", model="left")
    eventually(lambda: io_loop.run(coordinator.world_sizes, "left") == {1, 2})
    with engine(processes.servers["node-c"], "left"):
        assert io_loop.run(fleet.delete_prefix, "left", TOKENS, "") == 16
    assert play(processes, "node-a", model="left", world_size=2) == 0


@pytest.mark.parametrize("name", ["node-a", "node-c"], ids=["with L2", "without L2"])
def test_chunks_of_several_object_groups_are_deleted_and_counted_as_chunks(
    fleet: FleetDeployment, processes: FleetProcesses, coordinator: Coordinator, name: str
) -> None:
    model = f"triple {name}"
    play(processes, name, model=model, world_size=2, hybrid=True)
    prefix = Prefix(model, TOKENS, "", 2, CHUNK_SIZE)
    eventually(lambda: [one.keys for one in io_loop.run(coordinator.chunks, prefix).values()] == [6] * 8)
    start = TOKENS[: 3 * CHUNK_SIZE]
    assert io_loop.run(fleet.delete_prefix, model, start, "") == 3
    eventually(lambda: [one.keys for one in io_loop.run(coordinator.chunks, prefix).values()] == [2] * 3 + [6] * 5)
    assert pin(fleet, model, TOKENS, pinned=True) == 8
    with pytest.raises(UnsupportedError, match="all 8 chunks of the prefix are pinned"):
        io_loop.run(fleet.delete_prefix, model, TOKENS, "")
    assert pin(fleet, model, TOKENS, pinned=False) == 8
    assert io_loop.run(fleet.delete_prefix, model, TOKENS, "") == 5


def test_a_prefix_of_three_ranks_is_pinned_and_warmed_in_chunks(
    fleet: FleetDeployment, processes: FleetProcesses, coordinator: Coordinator
) -> None:
    play(processes, "node-a", model="three", world_size=3)
    in_l2 = Prefix("three", TOKENS, "", 3, CHUNK_SIZE)
    eventually(lambda: all(any(p.tier == "l2" for p in at.copies) for at in io_loop.run(coordinator.chunks, in_l2).values()))
    with engine(processes.servers["node-b"], "three", world_size=3):
        warmed = io_loop.run(fleet.warm, "three", TOKENS, "")
    assert (warmed.requested_chunks, warmed.found_chunks) == (8, 8)
    assert warmed.message.startswith("chunks of the prefix: node-b has 8 of 8 in L1; not on node-a: no engine")
    assert pin(fleet, "three", TOKENS, pinned=True) == 8
    assert pin(fleet, "three", TOKENS, pinned=False) == 8


def test_a_model_that_nobody_knows_is_refused_and_nothing_is_deleted(fleet: FleetDeployment) -> None:
    for verb in (fleet.warm, fleet.delete_prefix, partial(fleet.pin, pinned=True)):
        with pytest.raises(UnsupportedError, match=r"world size is unknown.*Start its engine. Nothing was changed"):
            io_loop.run(verb, "never-seen", TOKENS, "")


def test_a_prefix_that_names_no_chunk_is_refused(fleet: FleetDeployment, coordinator: Coordinator) -> None:
    for verb in (fleet.warm, fleet.delete_prefix, partial(fleet.pin, pinned=True)):
        with pytest.raises(UnsupportedError, match=r"255 tokens is shorter than one chunk \(256 tokens\).*Nothing was changed"):
            io_loop.run(verb, "replay", TOKENS[:255], "")
        with pytest.raises(UnsupportedError, match="is not a cache salt"):
            io_loop.run(verb, "replay", TOKENS, "a@b")
    with pytest.raises(
        UnsupportedError, match=r"2148 tokens into 8 chunks.*into 16; start the coordinator with --chunk-size 128"
    ):
        io_loop.run(_chunks, coordinator, Prefix("replay", TOKENS, "", 1, 128))


def test_l1_of_all_servers_is_cleared(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    for name in ("node-a", "node-c"):
        play(processes, name, model="cleared")
    eventually(lambda: io_loop.run(fleet.snapshot).resident_objects >= 16)
    io_loop.run(fleet.clear)
    assert io_loop.run(fleet.snapshot).resident_objects == 0


@contextlib.contextmanager
def stranger(ip: str) -> Iterator[tuple[int, list[str]]]:
    """Something that listens at `ip`: its port, and what was asked of it."""
    asked: list[str] = []

    class Stranger(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            asked.append(str(self.client_address))

    with http.server.ThreadingHTTPServer((ip, 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], asked
        server.shutdown()


def test_a_server_outside_the_operators_networks_is_named_and_never_called(
    fleet: FleetDeployment, processes: FleetProcesses
) -> None:
    with stranger("127.0.0.2") as (port, asked):
        processes.register("stranger", "127.0.0.2", port)
        processes.register("named", "localhost", port)
        try:
            health = io_loop.run(fleet.snapshot).health
            assert not health.healthy
            told = "\n".join(health.problems)
            assert "stranger is missing from the sums: its address 127.0.0.2 is outside the networks" in told
            assert "it registered localhost, which is not an IP address" in told
            assert sorted(io_loop.run(fleet.members)) == ["node-a", "node-b", "node-c"]
            with pytest.raises(UnknownCacheError, match=r"stranger is left out: its address 127.0.0.2"):
                io_loop.run(fleet.member, "stranger")
            for call in (fleet.config, fleet.clear, fleet.version):
                io_loop.run(call)
            with engine(processes.servers["node-a"], "replay"):
                io_loop.run(fleet.delete_prefix, "replay", TOKENS, "")
                with contextlib.suppress(LMCacheToolError):
                    io_loop.run(fleet.warm, "replay", TOKENS, "")
            with connected(processes.url, networks=[]) as nobody, pytest.raises(UnreachableError, match="left out"):
                io_loop.run(nobody.config)
            assert asked == []
            processes.register("stranger", "127.0.0.2", port)  # again: it sends no heartbeats, and is forgotten after 3 s
            addresses = {f"127.0.0.2:{port}": processes.servers["node-c"].http_url.removeprefix("http://")}
            with connected(processes.url, networks=[], addresses=addresses) as mapped:
                assert sorted(io_loop.run(mapped.snapshot).members) == ["stranger"]
            assert asked == []
        finally:
            processes.deregister("stranger")
            processes.deregister("named")


@contextlib.contextmanager
def listener() -> Iterator[tuple[int, dict[str, str | None]]]:
    """Something that calls itself a server: its port, and the token that each path was asked with."""
    tokens: dict[str, str | None] = {}

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens[self.path] = self.headers["Authorization"]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], tokens
        server.shutdown()


def test_the_modules_token_goes_only_to_servers_whose_host_and_port_the_operator_gave(processes: FleetProcesses) -> None:
    names = ("found", "mapped", "half-mapped", "proxied")
    with contextlib.ExitStack() as stack:
        there = {name: stack.enter_context(listener()) for name in names}
        ports = {name: port for name, (port, _) in there.items()}
        addresses = {
            "10.9.0.1:8080": f"127.0.0.1:{ports['mapped']}",
            "10.9.0.2": "127.0.0.1",  # who registers chooses the port
            "10.9.0.3": f"http://127.0.0.1:{ports['proxied']}",
        }
        processes.register("found", "127.0.0.1", ports["found"])
        processes.register("mapped", "10.9.0.1", 8080)
        processes.register("half-mapped", "10.9.0.2", ports["half-mapped"])
        processes.register("proxied", "10.9.0.3", 8080)
        try:
            with connected(processes.url, addresses=addresses, token=SecretStr("of-the-module")) as fleet:
                for name in names:
                    admin = io_loop.run(fleet.member, name).admin
                    assert io_loop.run(admin.read, "/agent-tools/l2") == io_loop.run(admin.read, "/status") == {}
        finally:
            for name in names:
                processes.deregister(name)
        for name, (_, tokens) in there.items():
            bearer = "Bearer of-the-module" if name in {"mapped", "proxied"} else None
            assert tokens == {"/agent-tools/l2": bearer, "/status": None}, name


@pytest.mark.parametrize("addresses", [{}, {"10.9.0.2": "127.0.0.1"}])
def test_a_module_token_that_no_server_would_get_is_refused(addresses: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="module_token of a fleet goes only to servers whose host and port"):
        FleetDeployment("http://127.0.0.1:9", networks=LOOPBACK, addresses=addresses, token=SecretStr("of-the-module"))


def test_a_server_that_moved_is_connected_anew(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    there = [processes.servers[name].http_port for name in ("node-a", "node-b")]
    processes.register("mover", "127.0.0.1", there[0])  # the latest known there, so node-a is not told twice
    first = io_loop.run(fleet.member, "mover")
    assert sorted(io_loop.run(fleet.members)) == ["mover", "node-b", "node-c"]
    processes.register("mover", "127.0.0.1", there[1])
    second = eventually(lambda: one if (one := io_loop.run(fleet.member, "mover")) is not first else None)
    assert second.admin.base_url.endswith(f":{there[1]}")
    processes.deregister("mover")
    eventually(lambda: sorted(io_loop.run(fleet.members)) == ["node-a", "node-b", "node-c"])


def test_what_is_no_coordinator_is_told(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    with connected(processes.servers["node-a"].http_url) as wrong, pytest.raises(NotLMCacheError, match="is not a coordinator"):
        io_loop.run(wrong.snapshot)


def test_a_killed_server_is_left_out_and_then_forgotten(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    before = io_loop.run(fleet.snapshot)
    playing = threading.Thread(target=play, args=(processes, "node-a", log_of(*conversations(40, 8)), "meanwhile"))
    playing.start()
    processes.kill("node-b")

    async def many() -> list[Any]:
        return await asyncio.gather(*(fleet.snapshot() for _ in range(4)), fleet.config())

    after, *_, config = io_loop.run(many)
    assert sorted(after.members) == ["node-a", "node-c"]
    assert any(problem.startswith("node-b is missing from the sums: no cache answered") for problem in after.health.problems)
    assert config.max_size_mb == 16
    not_everywhere = r"deleted on node-a, node-c, not on node-b: the coordinator cannot reach the server"
    with engine(processes.servers["node-a"], "replay"), pytest.raises(OutcomeUnknownError, match=not_everywhere):
        io_loop.run(fleet.delete_prefix, "replay", TOKENS, "")
    playing.join()
    eventually(lambda: sorted(io_loop.run(fleet.members)) == ["node-a", "node-c"], seconds=20)
    eventually(lambda: (metrics_between(before, io_loop.run(fleet.snapshot)).total_requests or 0) >= 40)
    assert io_loop.run(fleet.snapshot).health.healthy


def test_without_its_coordinator_a_fleet_cannot_be_reached(fleet: FleetDeployment, processes: FleetProcesses) -> None:
    processes.stop_coordinator()
    for call in (fleet.snapshot, fleet.config, fleet.tenants, partial(fleet.entries, 3), fleet.clear):
        with pytest.raises(
            UnreachableError, match=r"coordinator did not answer.*Nothing was changed. Start `lmcache coordinator`"
        ):
            io_loop.run(call)
