"""Claims about exported settings: they start a cache with the same settings, and a resource that differs is named."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_cache import Launch

from agent_tools.caches.arguments import pairs_of
from agent_tools.caches.kubernetes import KubernetesSettings, Resource, drift, merge_patch, read_resource
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.caches.start_configuration import OF_A_PRIVATE_SERVER, start_configuration
from agent_tools.deployments.server.command_line import Flags
from agent_tools.errors import SettingsError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.lmcache_import import importing_lmcache
from agent_tools.models import Bounds, CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter, SupportLevel
from agent_tools.models.config import UNKNOWN_SETTINGS
from agent_tools.models.start_configuration import StartForm
from agent_tools.operations import Operations

SPEC = """
apiVersion: lmcache.ai/v1alpha1
kind: LMCacheEngine
metadata: {name: prod, namespace: serving}
spec:
  l1: {sizeGB: 0.015625}
  eviction: {policy: LRU, triggerWatermark: 0.8, evictionRatio: 0.2}
  server: {chunkSize: 256}
  extraArgs: ["--eviction-ratio", "0.25", "--metrics-sample-rate=0.5"]
"""
Make = Callable[..., Operations]


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Make]:
    """Makes operations on a server by its address."""
    made: list[Operations] = []

    def at(url: str, **settings: Any) -> Operations:
        default = CacheSettings(target=url, cooldown_seconds=0, bounds=Bounds(max_size_mb=64, allow_restart=True), **settings)
        made.append(Operations(Registry(Settings(caches={"default": default}, state_folder=tmp_path / "state"))))
        return made[-1]

    yield at
    for operations in made:
        io_loop.run(operations.close)


def flags_of_text(command: str) -> Flags:
    pairs = pairs_of(shlex.split(command)[2:])
    flags: Flags = {}
    for flag, value in pairs:
        if flag not in OF_A_PRIVATE_SERVER:  # the test's own ports and folders
            flags.setdefault(flag, []).append(True if value is None else value)
    return {flag: values[0] if values == [True] else values for flag, values in flags.items()}


def test_exported_flags_start_a_server_with_the_settings_in_force(launch: Launch, at: Make) -> None:
    module = json.dumps({"module_path": "agent_tools.server_module", "config": {}})
    mock = '{"type": "mock", "max_size_gb": 0.01, "mock_bandwidth_gb": 1.0}'
    first = at(launch({"--server-module": module, "--l2-adapter": mock, "--chunk-size": 64}).http_url)
    live = ConfigUpdate(
        eviction_watermark=0.7, eviction_ratio=0.35, eviction_policy=EvictionPolicy.ARC, l2_prefetch_policy="retain"
    )
    assert io_loop.run(first.configure, "default", live, "test", "test") is not None
    exported = io_loop.run(first.export, "default", StartForm.ARGS)
    assert exported.text.startswith("lmcache server ")
    second = at(launch(flags_of_text(exported.text)).http_url)
    before, after = (io_loop.run(one.settings) for one in (first, second))
    assert after == before
    assert (after.eviction_ratio, after.eviction_policy, after.chunk_size) == (0.35, EvictionPolicy.ARC, 64)


def test_a_change_made_live_is_named_as_drift_until_the_resource_has_it(launch: Launch, at: Make, tmp_path: Path) -> None:
    file = tmp_path / "prod.yaml"
    file.write_text(SPEC, encoding="utf-8")
    module = json.dumps({"module_path": "agent_tools.server_module", "config": {}})
    server = launch({"--server-module": module, "--eviction-ratio": 0.25})
    operations = at(server.http_url, kubernetes=KubernetesSettings(file=file))
    assert io_loop.run(operations.drift) == ()
    io_loop.run(operations.configure, "default", ConfigUpdate(eviction_watermark=0.7), "test", "test")
    (found,) = io_loop.run(operations.drift)
    assert (found.setting, found.spec, found.in_force) == ("eviction_watermark", 0.8, 0.7)
    assert "eviction_watermark is 0.7 and 0.8 in the resource" in io_loop.run(operations.status).notes["kubernetes"]

    patch = json.loads(io_loop.run(operations.export, "default", StartForm.KUBERNETES).text)
    assert patch["spec"]["eviction"]["triggerWatermark"] == 0.7
    assert "--metrics-sample-rate=0.5" in patch["spec"]["extraArgs"] or "--metrics-sample-rate=0.01" in patch["spec"]["extraArgs"]
    resource = yaml.safe_load(SPEC)
    resource["spec"] |= patch["spec"]
    file.write_text(yaml.safe_dump(resource), encoding="utf-8")
    assert io_loop.run(operations.drift) == ()

    restart = io_loop.run(operations.plan, "default", ConfigUpdate(chunk_size=128), "test")
    assert restart.command is not None
    words = shlex.split(restart.command)
    assert words[:8] == ["kubectl", "patch", "lmc", "prod", "-n", "serving", "--type", "merge"]
    assert json.loads(words[-1])["spec"]["server"] == {"chunkSize": 128}


def test_what_the_resource_states_last_counts() -> None:
    resource = Resource(name="prod", namespace=None, spec=yaml.safe_load(SPEC)["spec"])
    config = CacheConfig(max_size_mb=16, eviction_policy=EvictionPolicy.LRU, eviction_ratio=0.2, chunk_size=256)
    (found,) = drift(resource, config)
    assert (found.setting, found.spec) == ("eviction_ratio", 0.25)


def test_a_patch_keeps_other_arguments_and_leaves_what_the_operator_sets() -> None:
    resource = Resource(name="prod", namespace=None, spec={"extraArgs": ["--eviction-ratio", "0.25", "--engine-type=x"]})
    patch, _ = merge_patch([("--eviction-ratio", "0.3"), ("--port", "1"), ("--eviction-policy", "ARC")], resource)
    assert patch == {"spec": {"eviction": {"evictionRatio": 0.3}, "extraArgs": ["--engine-type=x", "--eviction-policy=ARC"]}}


def test_a_patch_takes_back_what_the_resource_states_and_is_not_in_force() -> None:
    """A flag at LMCache's default is left out of a command line, and a merge patch keeps what it does not name."""
    spec = {
        "eviction": {"policy": "LRU", "evictionRatio": 0.25},
        "server": {"chunkSize": 512},
        "extraArgs": ["--l2-prefetch-policy", "retain", '--l2-adapter={"type": "fs"}', "--separate-object-groups"],
    }
    resource = Resource(name="prod", namespace=None, spec=spec)
    patch, _ = merge_patch([("--eviction-policy", "LRU"), ("--separate-object-groups", None)], resource)
    assert patch["spec"] == {
        "eviction": {"policy": "LRU", "evictionRatio": 0.2},
        "server": {"chunkSize": 256},
        "extraArgs": ["--separate-object-groups"],
    }
    config = CacheConfig(eviction_policy=EvictionPolicy.LRU, eviction_ratio=0.2, chunk_size=256, l2_prefetch_policy="default")
    assert drift(resource.model_copy(update={"spec": spec | patch["spec"]}), config) == ()
    nothing_left, _ = merge_patch([], Resource(name="prod", namespace=None, spec={"extraArgs": ["--l2-store-policy=skip_l1"]}))
    assert nothing_left == {"spec": {"extraArgs": []}}


def test_a_patch_does_not_repeat_the_adapter_of_l2_backend() -> None:
    fs, resp = json.dumps({"type": "fs", "base_path": "/kv"}), json.dumps({"type": "resp", "host": "h", "port": 1})
    for backend, left in (({"resp": {"host": "h"}}, [fs]), ({"raw": {"type": "fs"}}, [resp]), ({"storePolicy": "x"}, [resp, fs])):
        resource = Resource(name="prod", namespace=None, spec={"l2Backend": backend})
        patch, _ = merge_patch([("--l2-adapter", resp), ("--l2-adapter", fs)], resource)
        assert patch["spec"]["extraArgs"] == [f"--l2-adapter={one}" for one in left]


def test_flags_with_several_values_and_values_with_dashes_stay_whole() -> None:
    command = "lmcache server --enable p2p blend --instance-id=-x --no-l1-use-lazy --script-allowed-imports os 're mote' --port 1"
    several = ["--enable", "p2p", "blend"], ["--script-allowed-imports", "os", "re mote"]
    patch, _ = merge_patch(pairs_of(shlex.split(command)[2:]), Resource(name="a", namespace=None, spec={"extraArgs": several[0]}))
    assert patch["spec"]["extraArgs"] == [*several[0], *several[1]]
    found = start_configuration("c", "embedded", CacheConfig(), f"{command} --l2-store-policy=-y", StartForm.ARGS)
    assert shlex.split(found.text)[2:] == [*several[0], *several[1], "--l2-store-policy=-y"]


def test_adapters_with_unknown_settings_are_not_called_secret() -> None:
    adapter = L2Adapter(type="fs", settings=UNKNOWN_SETTINGS)
    found = start_configuration(
        "c", "http", CacheConfig(l2_adapters=(adapter,)), "lmcache server --l2-adapter '***'", StartForm.ARGS
    )
    assert found.notes == ("LMCache does not report the settings of some L2 adapters: write them in place of ***",)


@pytest.mark.parametrize("tags", [("one",), ("fast", "_default")])
def test_a_server_with_tagged_pools_is_exported_as_it_is(launch: Launch, at: Make, tags: tuple[str, ...]) -> None:
    eviction = {"eviction_policy": "ARC", "trigger_watermark": 0.75}
    pools = [{"type": "DRAM", "tag": tag, "size_gb": 2**-6 * (1 + n), "eviction": eviction} for n, tag in enumerate(tags)]
    module = json.dumps({"module_path": "agent_tools.server_module", "config": {}})
    flags: Flags = {"--l1-size-gb": [], "--l1-manager": [json.dumps(pool) for pool in pools], "--server-module": module}
    first = at(launch(flags).http_url)
    level = io_loop.run(first.registry.get("default").deployment.support)["eviction_watermark"].level
    assert level is (SupportLevel.LIVE if len(tags) == 1 else SupportLevel.RESTART)
    if level is SupportLevel.LIVE:
        io_loop.run(first.configure, "default", ConfigUpdate(eviction_watermark=0.6), "test", "test")
    exported = io_loop.run(first.export, "default", StartForm.ARGS)
    second = at(launch({**flags_of_text(exported.text), "--l1-size-gb": []}).http_url)
    before, after = (io_loop.run(one.settings) for one in (first, second))
    assert after == before
    again = io_loop.run(second.export, "default", StartForm.ARGS).text
    assert managers(again) == managers(exported.text) != []
    assert {pool["eviction"]["trigger_watermark"] for pool in managers(again)} == {0.6 if len(tags) == 1 else 0.75}


def managers(command: str) -> list[Any]:
    return [json.loads(str(value)) for flag, value in pairs_of(shlex.split(command)[2:]) if flag == "--l1-manager"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Deployment\n", "holds 0 resources"),
        (f"{SPEC}---\n{SPEC}", "holds 2 resources"),
        ("a: [", "holds 0 resources"),
        ("- - -\n", "holds 0 resources"),
    ],
)
def test_a_file_without_exactly_one_resource_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "lmc.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        read_resource(KubernetesSettings(file=file))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml cannot be read"):
        read_resource(KubernetesSettings(file=tmp_path / "nowhere.yaml"))


def test_of_several_resources_the_named_one_is_read(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    items = [{"kind": "LMCacheEngine", "metadata": {"name": name}, "spec": {"l1": {"sizeGB": 1}}} for name in "ab"]
    file.write_text(json.dumps({"kind": "List", "items": items}), encoding="utf-8")
    assert read_resource(KubernetesSettings(file=file, name="b")).name == "b"


IN_PROCESS = CacheConfig(
    max_size_mb=512,
    eviction_policy=EvictionPolicy.LFU,
    min_prefix_length=512,
    chunk_size=256,
    l2_adapters=(L2Adapter(type="local_disk", settings={"path": "/kv", "max_capacity_gb": 2.0}),),
)


def test_in_process_settings_are_read_by_lmcache_as_they_were_exported(
    lmcache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with importing_lmcache():
        from lmcache.v1.config import LMCacheEngineConfig  # noqa: PLC0415

    file = tmp_path / "lmcache.yaml"
    file.write_text(start_configuration("c", "engine", IN_PROCESS, None, StartForm.YAML).text, encoding="utf-8")
    by_file = LMCacheEngineConfig.from_file(str(file))
    for line in start_configuration("c", "engine", IN_PROCESS, None, StartForm.ENV).text.splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, shlex.split(value)[0])
    by_environment = LMCacheEngineConfig.from_env()
    for read in (by_file, by_environment):
        assert (read.chunk_size, read.max_local_cpu_size, read.local_cpu, read.cache_policy) == (256, 0.5, True, "LFU")
        assert (read.min_retrieve_tokens, read.max_local_disk_size) == (512, 2.0)
        assert "/kv" in str(read.local_disk)


@pytest.mark.parametrize(
    ("kind", "form", "words"),
    [
        ("http", StartForm.ENV, "reads its settings from its command line; use args or kubernetes"),
        ("engine", StartForm.KUBERNETES, "inside an engine; use env or yaml"),
        ("fleet", StartForm.ARGS, "name one of its servers"),
        ("simulated", StartForm.ARGS, "no LMCache runs behind it"),
    ],
)
def test_a_form_that_a_cache_does_not_start_from_is_refused(kind: str, form: StartForm, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        start_configuration("c", kind, CacheConfig(), "lmcache server", form)


def test_secrets_are_hidden_and_quotas_are_noted() -> None:
    config = CacheConfig(max_size_mb=16, tenant_quotas_mb={"a": 4})
    found = start_configuration("c", "http", config, 'lmcache server --l2-adapter \'{"password": "***"}\'', StartForm.ARGS)
    assert "secrets are shown as ***: fill them in" in found.notes
    assert "the quotas of 1 tenants are no start option: set them again after a start" in found.notes
