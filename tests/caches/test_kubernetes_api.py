"""Claims about an `LMCacheEngine` resource in a cluster: drift and patches as for one in a file, and nothing is written there.

The API is a stand-in (`kubernetes_api`), and the `kubernetes` client is the real one. The `lmcache server` is real.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_api import KubernetesApi, kubeconfig
from pydantic import ValidationError
from real_cache import Launch
from serving import serving

from agent_tools.caches.kubernetes import KubernetesSettings, read_resource
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.process import free_port
from agent_tools.errors import SettingsError, UnreachableError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate
from agent_tools.models.start_configuration import StartForm
from agent_tools.operations import Operations

pytest.importorskip("kubernetes")
RESOURCE = yaml.safe_load("""
apiVersion: lmcache.lmcache.ai/v1alpha1
kind: LMCacheEngine
metadata: {name: prod, namespace: serving, resourceVersion: "7"}
spec:
  l1: {sizeGB: 0.015625}
  eviction: {policy: LRU, triggerWatermark: 0.8, evictionRatio: 0.2}
  server: {chunkSize: 256}
  extraArgs: ["--metrics-sample-rate=0.5"]
status: {phase: Running}
""")
PROD = KubernetesSettings(name="prod", namespace="serving")
Cluster = tuple[KubernetesApi, str]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster with the resource, which the kubeconfig names."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    api = KubernetesApi({"prod": json.loads(json.dumps(RESOURCE))})
    with serving(api) as url:
        servers = {"here": url, "stranger": url, "gone": f"http://127.0.0.1:{free_port()}"}
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, **servers)))
        yield api, url


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Callable[[str], Operations]]:
    """Makes operations on a server whose resource is in the cluster."""
    made: list[Operations] = []

    def at(url: str) -> Operations:
        bounds = Bounds(max_size_mb=64, allow_restart=True)
        default = CacheSettings(target=url, cooldown_seconds=0, bounds=bounds, kubernetes=PROD)
        made.append(Operations(Registry(Settings(caches={"default": default}, state_folder=tmp_path / "state"))))
        return made[-1]

    yield at
    for one in made:
        io_loop.run(one.close)


def test_drift_is_noticed_and_a_restart_is_a_patch_of_the_resource(
    cluster: Cluster, launch: Launch, at: Callable[[str], Operations]
) -> None:
    api, _ = cluster
    module = json.dumps({"module_path": "agent_tools.server_module", "config": {}})
    operations = at(launch({"--server-module": module}).http_url)
    assert io_loop.run(operations.drift) == ()
    io_loop.run(operations.configure, "default", ConfigUpdate(eviction_watermark=0.7), "test", "test")
    (found,) = io_loop.run(operations.drift)
    assert (found.setting, found.spec, found.in_force) == ("eviction_watermark", 0.8, 0.7)
    assert "eviction_watermark is 0.7 and 0.8 in the resource" in io_loop.run(operations.status).notes["kubernetes"]

    api.resources["prod"]["spec"] |= json.loads(io_loop.run(operations.export, "default", StartForm.KUBERNETES).text)["spec"]
    assert io_loop.run(operations.drift) == ()

    words = shlex.split(io_loop.run(operations.plan, "default", ConfigUpdate(chunk_size=128), "test").command or "")
    assert words[:8] == ["kubectl", "patch", "lmc", "prod", "-n", "serving", "--type", "merge"]
    assert json.loads(words[-1])["spec"]["server"] == {"chunkSize": 128}
    assert {one.partition(" ")[0] for one in api.asked} == {"GET"}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"name": "test"}, "answered 404 for the resource test in namespace serving: there is no such resource"),
        ({"namespace": "other"}, "answered 403 .* give the account the verb get on them"),
        ({"context": "stranger"}, "answered 401 .* it does not know us"),
        ({"context": "nowhere"}, "no credentials for a Kubernetes API"),
    ],
)
def test_what_the_api_does_not_show_is_said_with_what_to_do(cluster: Cluster, wanted: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_resource(KubernetesSettings(**{"name": "prod", "namespace": "serving", **wanted}))


def test_a_cluster_that_does_not_answer_costs_the_status_nothing_but_a_note(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = KubernetesSettings(name="prod", namespace="serving", context="gone")
    with pytest.raises(UnreachableError, match="no Kubernetes API answered"):
        read_resource(gone)
    default = CacheSettings(target="simulated:", kubernetes=gone)
    operations = Operations(Registry(Settings(caches={"default": default}, state_folder=tmp_path)))
    try:
        assert "no Kubernetes API answered" in io_loop.run(operations.status).notes["kubernetes"]
    finally:
        io_loop.run(operations.close)


def test_something_else_at_that_address_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": b"<h1>Welcome</h1>"})

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with serving(page) as url:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, here=url)))
        with pytest.raises(SettingsError, match="is no Kubernetes API"):
            read_resource(PROD)


def test_without_the_client_the_extra_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [one for one in sys.modules if one.partition(".")[0] == "kubernetes"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(SettingsError, match="install the extra `kubernetes`"):
        read_resource(PROD)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a `file`, or the `name`"),
        ({"namespace": "serving"}, "needs a `file`, or the `name`"),
        ({"file": "lmc.yaml", "context": "here"}, "remove `namespace` and `context`"),
    ],
)
def test_settings_that_name_no_place_or_two_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        KubernetesSettings(**given)  # type: ignore[arg-type]
