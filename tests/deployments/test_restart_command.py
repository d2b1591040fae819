# ruff: noqa: PLC0415  LMCache takes seconds to import, and is not everywhere
"""Claims about restart commands: a server that is started again as proposed reports the configuration it had, but for the change.

LMCache's own parsers and its own ``/config`` route judge the command line, for every flag of ``lmcache server --help``.
"""

import argparse
import asyncio
import json
import shlex
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from real_cache import Launch

from agent_tools.deployments.server.answers import adapters_of
from agent_tools.deployments.server.command_line import argv, command_line, flags_of, with_update
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.start_flags import LISTS, SWITCHES, VALUES
from agent_tools.io_loop import io_loop
from agent_tools.lmcache_import import importing_lmcache
from agent_tools.models import CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter

pytestmark = [pytest.mark.usefixtures("parsers"), pytest.mark.filterwarnings("ignore")]
ELSEWHERE = {
    "--l1-size-gb",
    "--l1-init-size-gb",
    "--l1-manager",
    "--l2-adapter",
    "--server-module",
    "--runtime-plugin-config",
    "--disable-grpc-metrics",
    "--coordinator-event-transport",
    "--shm-name",
}
"""Flags that are written by code of their own."""
NOT_CONFIGURATION = {"--format", "--output", "--quiet", "--help"}
LEAST = ["--l1-size-gb", "0.03125", "--eviction-policy", "LRU", "--instance-id", "prefiller"]
WORDS = st.text("abcXYZ019 -'\"$/.:é", min_size=1, max_size=8).filter(lambda word: word.strip() == word and word.strip("-"))
MODULE = '{"module_path": "agent_tools.server_module", "config": {"off": ["arenas"]}}'
ADAPTER = '{"type": "fs", "base_path": "/tmp/kv with space"}'
ADAPTERS: dict[str, dict[str, Any]] = {
    "aerospike": {"hosts": "h:3000", "per_op_workers": {"lookup": 2}},
    "bigtable": {
        **{f"bigtable_{name}": name for name in ("project_id", "instance_id", "table_name", "app_profile")},
        "bigtable_read_timeout_ms": 1500,
        "bigtable_max_chunk_size_mb": 10,
        "bigtable_family_name": "f",
        "row_key_template": "{hash}@{model}",
        "exists_cache_size": 7,
    },
    "dax": {"device_path": "/dev/dax0.0", "max_dax_size_gb": 1.5, "slot_bytes": 4096},
    "fs": {"base_path": '/tmp/it\'s "kv" $HOME é', "read_ahead_size": 4096},
    "fs_native": {"base_path": "-/kv", "use_odirect": True, "num_workers": 9},
    "hf3fs": {"mount_point": "/tmp", "base_paths": "/tmp", "io_depth": 1},
    "hfbucket": {"bucket_handle": "hf://buckets/a/b", "create_bucket_if_missing": True},
    "mock": {"max_size_gb": 1, "mock_bandwidth_gb": 2.5},
    "mooncake_store": {
        "protocol": "rdma",
        "metadata_server": "http://h:1/m?a=b c",
        "global_segment_size": 1024,
        "num_workers": 2,
    },
    "native_plugin": {"module_path": "a.b", "class_name": "C", "adapter_params": {"host": "h", "deep": {"list": [1, "x y"]}}},
    "nixl_native": {"backend": "OBJ", "backend_params": {"bucket": "b"}},
    "p2p": {"peer_mq_server_url": "u", "peer_transfer_channel_server_url": "v", "load_timeout_s": 3.5},
    "plugin": {"module_path": "a.b", "class_name": "C", "adapter_params": {"host": "h", "off": []}},
    "raw_block": {"device_path": "/dev/nvme0n1", "slot_bytes": 8192, "use_odirect": False, "fdp_placement_ids": [1, 2]},
    "resp": {"host": "h", "port": 6379, "max_capacity_gb": 2},
    "s3": {"s3_endpoint": "b.s3.x", "s3_region": "r", "s3_prefer_http2": False, "disable_tls": True},
    "sagemaker-hyperpod": {"url": "sagemaker-hyperpod://h:9200", "lease_ttl_ms": 5},
    "valkey": {"startup_nodes": "h:1,[::1]:2", "cluster_mode": True, "key_prefix": "p", "ttl_seconds": 60},
}
"""Settings of each adapter type that LMCache has on this machine."""
IN_COMMON: tuple[dict[str, Any], ...] = (
    {},
    {"eviction": {"eviction_policy": "IsolatedLRU", "trigger_watermark": 0.7}},
    {"serde": {"type": "fp8", "max_workers": 2}},
    {"persist_enabled": False},
    {"shared": True},
)
POOLS = [
    '{"type": "DRAM", "tag": "a", "size_gb": 0.01, "eviction": {"eviction_policy": "ARC", "trigger_watermark": 0.7}}',
    '{"type": "DEVDAX", "tag": "b", "size_gb": 0.02, "path": "/dev/dax0.0", "read_ttl_seconds": 7}',
]


@pytest.fixture(scope="module")
def parsers(lmcache: None) -> None:
    """LMCache, imported without its warnings."""
    with importing_lmcache():
        from lmcache.v1.distributed import config  # noqa: F401
        from lmcache.v1.mp_observability import config as _  # noqa: F401
        from lmcache.v1.multiprocess import config as __  # noqa: F401
        from lmcache.v1.multiprocess.http_apis import config_api  # noqa: F401


@cache
def parser() -> argparse.ArgumentParser:
    """The parser of ``lmcache server``, as its own command builds it."""
    from lmcache.v1.distributed.config import add_storage_manager_args
    from lmcache.v1.mp_observability.config import add_observability_args
    from lmcache.v1.multiprocess import config

    made = argparse.ArgumentParser(allow_abbrev=False)
    for add in (
        config.add_mp_server_args,
        config.add_p2p_args,
        add_storage_manager_args,
        config.add_http_frontend_args,
        add_observability_args,
        config.add_coordinator_args,
    ):
        add(made)
    return made


def config_of(arguments: list[str]) -> dict[str, Any]:
    """What ``/config`` answers on a server that was started with these arguments.

    Raises:
        SystemExit, ValueError: LMCache does not take them.
    """
    from lmcache.v1.distributed.config import parse_args_to_config
    from lmcache.v1.mp_observability import config as observability
    from lmcache.v1.multiprocess import config
    from lmcache.v1.multiprocess.http_apis.config_api import config as route

    args = parser().parse_args(arguments)
    configs = {
        "mp": config.parse_args_to_mp_server_config(args),
        "storage_manager": parse_args_to_config(args),
        "observability": observability.parse_args_to_observability_config(args),
        "http": config.parse_args_to_http_frontend_config(args),
        "coordinator": config.parse_args_to_coordinator_config(args),
    }
    # The server resolves this one when it starts.
    enabled = observability.resolve_grpc_metrics_enabled(configs["observability"].grpc_metrics_enabled, args.transport)
    configs["observability"].grpc_metrics_enabled = enabled
    request = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(configs=configs)))
    return json.loads(asyncio.run(route(request)).body)


def started_again(arguments: list[str], update: ConfigUpdate | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of a server, and that of the server which the restart command for an update starts."""
    before = config_of(arguments)
    types = [json.loads(spec)["type"] for flag, spec in pairwise(arguments) if flag == "--l2-adapter"]
    live = {"adapters": [{"type_name": name, "tier": "l2"} for name in types]}
    flags = flags_of(before, CacheConfig(l2_adapters=adapters_of(before, live)))
    line = command_line(flags if update is None else with_update(flags, update))
    return before, config_of(shlex.split(line)[2:])


def values_of(action: argparse.Action) -> st.SearchStrategy[list[str]]:  # noqa: PLR0911
    """Arguments that set one flag to something else than usual."""
    flag = action.option_strings[0]
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return st.sampled_from([[one] for one in action.option_strings])
    if action.nargs == "*":
        return st.lists(WORDS.filter(lambda word: not word.startswith("-")), min_size=1, max_size=3).map(lambda ws: [flag, *ws])
    if flag == "--runtime-plugin-config":
        return st.dictionaries(WORDS, st.integers(), max_size=2).map(lambda extra: [flag, json.dumps(extra)])
    if action.choices:
        return st.sampled_from([[flag, str(choice)] for choice in action.choices])
    if action.type is int:
        return st.integers(1, 60_000).map(lambda number: [flag, str(number)])
    if action.type is float or "seconds" in flag or "interval" in flag or "timeout" in flag:
        return st.floats(0.001, 1.0).map(lambda number: [flag, repr(number)])
    return WORDS.map(lambda word: [f"{flag}={word}"])


def options() -> list[argparse.Action]:
    return [one for one in parser()._actions if one.option_strings and one.help is not argparse.SUPPRESS]


def test_every_flag_of_the_server_is_written() -> None:
    ours = {flag for _, flag, _ in (*VALUES, *SWITCHES)} | {flag for _, flag in LISTS} | ELSEWHERE
    # A switch that can be given both ways is written in the way that is not its default.
    missing = [one.option_strings for one in options() if not ours & {*one.option_strings}]
    assert [names for names in missing if not NOT_CONFIGURATION & {*names}] == []


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.data())
def test_the_restart_command_starts_the_same_server(data: st.DataObject) -> None:
    theirs = [
        one for one in options() if not {"--help", "--l1-manager", "--l2-adapter", "--server-module"} & {*one.option_strings}
    ]
    chosen = data.draw(st.lists(st.sampled_from(theirs), max_size=8, unique_by=id))
    repeated = data.draw(st.sampled_from([[], ["--l2-adapter", ADAPTER], ["--server-module", MODULE, "--l2-adapter", ADAPTER]]))
    arguments = [*LEAST, *repeated, *(part for one in chosen for part in data.draw(values_of(one)))]
    try:
        config_of(arguments)
    except (SystemExit, ValueError, RuntimeError):
        assume(False)  # LMCache does not take these together
    before, after = started_again(arguments)
    assert after == before


def test_each_flag_alone_survives() -> None:
    """The same without chance: one flag at a time, with one value each."""
    lost = {}
    for one in options():
        if one.option_strings[0] in {"-h", "--l1-manager", "--server-module", "--l2-adapter", "--enable-tracing"}:
            continue
        values = {int: "3", float: "0.375"}.get(one.type, "word")  # type: ignore[call-overload]
        switch = one.nargs == 0 or isinstance(one, argparse.BooleanOptionalAction)
        value = [] if switch else [str([*one.choices][-1])] if one.choices else [values]
        if one.option_strings[0] == "--runtime-plugin-config":
            value = ['{"a": "b c"}']
        for name in one.option_strings:
            try:
                before, after = started_again([*LEAST, name, *value])
            except (SystemExit, ValueError, RuntimeError):
                continue  # LMCache wants another flag beside it
            if before != after:
                lost[name] = (value, before, after)
    assert lost == {}


@pytest.mark.parametrize("more", IN_COMMON, ids=lambda more: next(iter(more), "plain"))
@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_type_of_l2_adapter_goes_back_whole(kind: str, more: dict[str, Any]) -> None:
    arguments = [*LEAST, "--l2-adapter", json.dumps({"type": kind, **ADAPTERS[kind], **more})]
    try:
        config_of(arguments)
    except ImportError as error:
        pytest.skip(f"LMCache cannot import this adapter here: {error}")
    except ValueError as error:
        if not more:
            raise
        pytest.skip(f"LMCache does not take this of such an adapter: {error}")
    before, after = started_again(arguments)
    assert after == before


def test_every_type_of_l2_adapter_is_tried() -> None:
    from lmcache.v1.distributed.l2_adapters.config import get_registered_l2_adapter_types

    not_here = {"fault_inject"}  # below
    assert {*get_registered_l2_adapter_types()} - {*ADAPTERS} <= not_here | {
        "nixl_store",
        "nixl_store_dynamic",
    }  # these need nixl


def test_dax_devices_go_back_whole() -> None:
    devices = [{"device_path": f"/dev/dax{number}.0", "max_dax_size_gb": 1.0 + number} for number in range(3)]
    for count in (0, 1, 3):
        spec = {"type": "dax", "slot_bytes": 4096, "devices": devices[:count], "hotplug_enabled": True}
        before, after = started_again([*LEAST, "--l2-adapter", json.dumps(spec)])
        assert after == before, count


def test_an_adapter_that_lmcache_reports_as_an_object_is_unknown() -> None:
    spec = {"type": "fault_inject", "inner": {"type": "mock", "max_size_gb": 1, "mock_bandwidth_gb": 1}}
    before = config_of([*LEAST, "--l2-adapter", json.dumps(spec)])
    (adapter,) = adapters_of(before, {"adapters": [{"type_name": "fault_inject", "tier": "l2"}]})
    assert not adapter.settings_known
    assert "0x" not in repr(adapter)


def test_tagged_pools_go_back_whole_and_take_an_update() -> None:
    arguments = ["--eviction-policy", "LRU", "--instance-id", "i", *(part for pool in POOLS for part in ("--l1-manager", pool))]
    before, after = started_again(arguments)
    assert after == before
    _, changed = started_again(arguments, ConfigUpdate(eviction_watermark=0.6))
    pools = changed["storage_manager"]["l1_manager_configs"]
    assert [pool["eviction"]["trigger_watermark"] for pool in pools] == [0.6, 0.6]
    assert [pool["tag"] for pool in pools] == ["a", "b"]


def test_peers_that_the_server_finds_by_itself_are_not_started_with() -> None:
    """P2P attaches an adapter for each peer, and does it again after a restart."""
    peer = L2Adapter(type="p2p", settings=ADAPTERS["p2p"])
    disk = L2Adapter(type="fs", settings=ADAPTERS["fs"])
    finds = config_of([*LEAST, "--p2p-advertise-url", "h:1", "--coordinator-url", "http://h:2"])
    given = [flags_of(config, CacheConfig(l2_adapters=(disk, peer)))["--l2-adapter"] for config in (finds, config_of(LEAST))]
    assert [[json.loads(one)["type"] for one in adapters] for adapters in given] == [["fs"], ["fs", "p2p"]]


def test_only_the_change_differs() -> None:
    arguments = [*LEAST, "--separate-object-groups", "--prometheus-port", "9191", "--lookup-hash-log-max-files", "50"]
    before, after = started_again(arguments, ConfigUpdate(eviction_watermark=0.6, eviction_policy=EvictionPolicy.ARC))
    eviction = {"trigger_watermark": 0.6, "eviction_policy": "ARC"}
    for manager in (before["storage_manager"], before["storage_manager"]["l1_manager_config"]):
        manager["eviction_config" if "eviction_config" in manager else "eviction"] |= eviction
    before["storage_manager"]["l1_manager_configs"][0]["eviction"] |= eviction
    assert after == before


def test_an_l1_that_was_grown_live_starts_as_large_as_it_is() -> None:
    grown = flags_of(config_of(LEAST), CacheConfig(max_size_mb=96.5))
    assert config_of(argv(grown))["storage_manager"]["l1_manager_config"]["memory_config"]["size_in_bytes"] == 96.5 * 2**20


def test_a_real_server_reports_the_same_after_a_restart_as_proposed(launch: Launch, tmp_path: Any) -> None:
    adapter = {"type": "fs_native", "base_path": str(tmp_path), "num_workers": 3, "max_capacity_gb": 0.1}
    first = launch(
        {
            "--chunk-size": 512,
            "--lookup-hash-log-rotation-interval": 7200,
            "--l1-write-ttl-seconds": 500,
            "--eviction-ratio": 0.1,
            "--metrics-sample-rate": 0.05,
            "--separate-object-groups": True,
            "--prometheus-port": 9191,
            "--instance-id": "prefiller",
            "--l2-adapter": json.dumps(adapter),
        }
    )

    async def read(url: str) -> tuple[dict[str, Any], Any]:
        deployment = ServerDeployment(url)
        try:
            config = await deployment.admin.read("/config")
            return config, with_update(await deployment._flags_now(), ConfigUpdate(eviction_watermark=0.7))
        finally:
            await deployment.close()

    before, flags = io_loop.run(read, first.http_url)
    after, _ = io_loop.run(read, launch(flags).http_url)
    for config in (before, after):  # `launch` gives each server ports and a folder of its own
        for part, name in (("mp", "port"), ("http", "http_port")):
            del config[part][name]
        del config["observability"]["lookup_hash_log"]["output_dir"]
    text = json.dumps(before).replace('"trigger_watermark": 0.8', '"trigger_watermark": 0.7')
    assert after == json.loads(text)
