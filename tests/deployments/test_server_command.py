"""Claims about command lines: what a server reports is what would start it again, and an update changes just what it names."""

import json
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_tools.deployments.server.command_line import adapter_json, argv, command_line, flags_of, with_update
from agent_tools.deployments.server.reported_adapter import adapter_of
from agent_tools.models import CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter

BOOT: dict[str, Any] = {
    "mp": {"chunk_size": 128, "port": 5555, "shm_name": "", "server_modules": []},
    "storage_manager": {
        "l1_manager_config": {"memory_config": {"size_in_bytes": 2**24, "use_lazy": True, "devdax_path": ""}},
        "eviction_config": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.1},
    },
}

UNKNOWN = CacheConfig()


def test_flags_at_their_default_are_left_out() -> None:
    assert command_line(flags_of(BOOT, UNKNOWN)) == (
        "lmcache server --l1-size-gb 0.015625 --chunk-size 128 --eviction-policy LRU --eviction-ratio 0.1"
    )


def test_what_was_changed_live_is_what_it_would_be_started_with() -> None:
    now = CacheConfig(eviction_policy=EvictionPolicy.ARC, eviction_watermark=0.6, l2_prefetch_policy="retain")
    flags = flags_of(BOOT, now)
    assert (flags["--eviction-policy"], flags["--eviction-trigger-watermark"], flags["--eviction-ratio"]) == ("ARC", 0.6, 0.1)
    assert flags["--l2-prefetch-policy"] == "retain"


def test_modules_are_loaded_again_and_tell_no_secret() -> None:
    modules = [{"module_path": "agent_tools.server_module", "config": {"api_key": "hunter2", "off": []}}]
    flags = flags_of({**BOOT, "mp": {**BOOT["mp"], "server_modules": modules}}, UNKNOWN)
    assert json.loads(flags["--server-module"][0])["module_path"] == "agent_tools.server_module"
    assert "hunter2" not in command_line(flags)


def test_an_update_changes_just_the_flags_it_names() -> None:
    flags = flags_of(BOOT, UNKNOWN)
    update = ConfigUpdate(max_size_mb=32, eviction_watermark=0.5, l2_store_policy="skip_l1")
    changed = with_update(flags, update)
    assert {flag: value for flag, value in changed.items() if flags.get(flag) != value} == {
        "--l1-size-gb": 1 / 32,
        "--eviction-trigger-watermark": 0.5,
        "--l2-store-policy": "skip_l1",
    }
    assert flags == flags_of(BOOT, UNKNOWN)


@pytest.mark.parametrize(
    ("update", "policy"),
    [
        (ConfigUpdate(eviction_policy=EvictionPolicy.ARC), "ARC"),
        (ConfigUpdate(auto_eviction=False), "noop"),
        (ConfigUpdate(auto_eviction=True), "LRU"),
    ],
)
def test_automatic_eviction_is_a_matter_of_the_policy(update: ConfigUpdate, policy: str) -> None:
    assert with_update(flags_of(BOOT, UNKNOWN), update)["--eviction-policy"] == policy


def test_eviction_that_is_switched_on_again_is_lru() -> None:
    off = with_update(flags_of(BOOT, UNKNOWN), ConfigUpdate(auto_eviction=False))
    assert with_update(off, ConfigUpdate(auto_eviction=True))["--eviction-policy"] == "LRU"
    arc = with_update(off, ConfigUpdate(eviction_policy=EvictionPolicy.ARC))
    assert with_update(arc, ConfigUpdate(auto_eviction=True))["--eviction-policy"] == "ARC"


@pytest.mark.parametrize("name", ["password", "s3_secret_key", "access_key_id", "auth_token", "api_key"])
def test_a_secret_is_not_repeated(name: str) -> None:
    adapter = adapter_of("s3", {name: "hunter2", "bucket": "kv"})
    assert adapter == L2Adapter(type="s3", settings={name: "***", "bucket": "kv"})
    assert "hunter2" not in command_line(flags_of(BOOT, CacheConfig(l2_adapters=(adapter,))))


def test_a_secret_inside_another_field_is_not_repeated() -> None:
    nested = adapter_of("plugin", {"options": {"password": "hunter2", "host": "h"}, "url": "redis://user:hunter2@h:6379"})
    assert "hunter2" not in adapter_json(nested)
    assert nested.settings["options"]["host"] == "h"


def test_nested_settings_that_lmcache_reports_by_their_repr_are_read() -> None:
    reported = {
        "base_path": "/kv",
        "persist_config": "PersistConfig(persist_enabled=False)",
        "serde_config": "None",
        "eviction_config": "EvictionConfig(eviction_policy='LRU', trigger_watermark=0.8, eviction_ratio=0.2)",
        "affinity_tag": "_default",
    }
    assert adapter_of("fs_native", reported).settings == {
        "base_path": "/kv",
        "persist_enabled": False,
        "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
    }


@pytest.mark.parametrize(
    "text", ["", "EvictionConfig(", "__import__('os').system('true')", "EvictionConfig(eviction_policy=exit())"]
)
def test_a_repr_that_cannot_be_read_is_left_out_and_never_run(text: str) -> None:
    assert adapter_of("fs", {"eviction_config": text}).settings == {}


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text() | st.integers() | st.floats(0, 1), max_size=4))
def test_any_adapter_survives_a_shell(settings: dict[str, object]) -> None:
    adapter = L2Adapter(type="fs", settings={name.replace("\0", ""): value for name, value in settings.items()})
    line = command_line({"--l2-adapter": [adapter_json(adapter), adapter_json(adapter)]})
    assert shlex.split(line) == ["lmcache", "server", *argv({"--l2-adapter": [adapter_json(adapter)] * 2})]
