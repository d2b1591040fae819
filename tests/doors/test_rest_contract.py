"""The mission's REST contract, over real HTTP: on a simulated cache everywhere, on an embedded one where lmcache is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import serving
from simulated_cache import SIMULATED

from agent_tools.caches.own_bounds import free_mb
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.doors.rest import rest_app
from agent_tools.io_loop import io_loop
from agent_tools.models import SETTINGS, CacheConfig, CacheOptimizationResult, LMCacheStatus, Plan, Support
from agent_tools.operations import Operations

DEFAULTS = {
    "enabled": True,
    "max_size_mb": 1024.0,
    "eviction_policy": "lru",
    "enable_prefix_caching": True,
    "min_prefix_length": 16,
    "cache_warmup": False,
    "auto_eviction": True,
    "enable_sharing": True,
    "max_concurrent_users": 100,
}
"""The mission's nine settings at its defaults."""


EMBEDDED = pytest.param("embedded", marks=pytest.mark.skipif(SIMULATED, reason="lmcache is not installed"))
ON_BOTH = pytest.mark.parametrize("client", ["simulated", EMBEDDED], indirect=True)
"""For the tests that are worth the start of a real server."""


@pytest.fixture
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the REST door to one small private cache without stated bounds."""
    kind, options = getattr(request, "param", "simulated"), dict[str, Any](l1_size_mb=16)
    if kind == "embedded":
        options["arena_folder"] = request.getfixturevalue("arena_folder")
    else:
        options["traffic"] = None
    cache = CacheSettings.model_validate({"target": f"{kind}:", kind: options})
    operations = Operations(Registry(Settings(caches={"default": cache}, state_folder=tmp_path)))
    with serving(rest_app(lambda: operations)) as url, httpx.Client(base_url=f"{url}/lmcache", timeout=60) as client:
        yield client
    io_loop.run(operations.close)


def config(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("config")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@ON_BOTH
def test_the_configuration_is_flat_and_how_to_change_it_is_a_route_of_its_own(client: httpx.Client) -> None:
    found = config(client)
    assert set(found) == set(CacheConfig.model_fields)
    assert {
        name: found[name] for name in DEFAULTS if name not in {"max_size_mb", "min_prefix_length", "max_concurrent_users"}
    } == {
        name: value
        for name, value in DEFAULTS.items()
        if name not in {"max_size_mb", "min_prefix_length", "max_concurrent_users"}
    }
    assert (found["max_size_mb"], found["min_prefix_length"], found["max_concurrent_users"]) == (16.0, 256, None)
    support = client.get("config/support").json()
    assert set(support) == set(SETTINGS)
    assert Support.model_validate(support["max_size_mb"]).level.value == "live"


@pytest.mark.skipif((free_mb(Path("/dev/shm")) or 0) < 5000, reason="2 GB of free memory are needed")
@ON_BOTH
def test_all_nine_settings_of_the_mission_with_2048_mb_are_answered_with_2048(client: httpx.Client) -> None:
    answer = client.post("config", json=DEFAULTS | {"max_size_mb": 2048.0})
    assert (answer.status_code, answer.json()["max_size_mb"]) == (200, 2048.0), answer.text
    assert answer.json() == config(client)
    (record,) = client.get(client.base_url.join(answer.headers["location"])).json()[-1:]
    assert [(one["setting"], one["new"]) for one in record["changes"]] == [("max_size_mb", 2048.0)]
    assert record["outcome"] == "applied"


@pytest.mark.parametrize(
    ("setting", "value", "also"),
    [
        ("max_size_mb", 24.0, set()),
        ("eviction_watermark", 0.5, set()),
        ("eviction_policy", "noop", {"auto_eviction"}),
        ("auto_eviction", False, {"eviction_policy"}),
        ("chunk_size", 512, {"min_prefix_length"}),
        ("min_prefix_length", 16, {"min_prefix_length"}),
        ("max_concurrent_users", 5, {"max_concurrent_users"}),
    ],
)
def test_one_change_of_the_whole_configuration_is_exactly_that_change(
    client: httpx.Client, setting: str, value: object, also: set[str]
) -> None:
    """`also` reads otherwise than it was sent, because it follows from the change or is satisfied as it is."""
    before = config(client)
    answer = client.post("config", json=before | {setting: value})
    assert answer.status_code == 200, answer.text
    after = config(client)
    assert answer.json() == after
    changed = {name for name in before if before[name] != after[name]}
    assert changed == ({setting, *also} if setting not in also else set())
    assert ("location" in answer.headers) is bool(changed)
    assert setting in also or after[setting] == value


@pytest.mark.parametrize("body", [{}, DEFAULTS | {"max_size_mb": 16}, {"eviction_policy": None, "enabled": True}])
def test_what_holds_already_is_no_change_and_no_error(client: httpx.Client, body: dict[str, object]) -> None:
    before = config(client)
    for query in ({}, {"dry_run": True}, {"fingerprint": "0123456789abcdef"}):
        answer = client.post("config", params=query, json=body)
        assert (answer.status_code, answer.json()) == (200, before), answer.text
        assert "location" not in answer.headers
    assert client.get("changes").json() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"enabled": False},
        {"enable_prefix_caching": False},
        {"cache_warmup": True},
        {"enable_sharing": False},
        {"min_prefix_length": 1000},
    ],
)
def test_what_lmcache_cannot_do_is_refused_by_name_and_nothing_changes(client: httpx.Client, wrong: dict[str, object]) -> None:
    before = config(client)
    refused = client.post("config", json=DEFAULTS | {"max_size_mb": 24.0} | wrong)
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported")
    assert f"{next(iter(wrong))} cannot be changed" in refused.json()["detail"]
    assert config(client) == before
    assert client.get("changes").json() == []


def test_a_dry_run_is_answered_with_the_plan(client: httpx.Client) -> None:
    before = config(client)
    answer = client.post("config", params={"dry_run": True, "reason": "a test"}, json=before | {"max_size_mb": 24.0})
    plan = Plan.model_validate_json(answer.content)
    assert ([change.setting for change in plan.changes], plan.reason) == (["max_size_mb"], "a test")
    assert "location" not in answer.headers
    assert config(client) == before


def test_status_version_optimize_and_clear(client: httpx.Client) -> None:
    status = LMCacheStatus.model_validate_json(client.get("status").content)
    assert client.get("version").json() == {"lmcache_version": status.lmcache_version}
    for answer in (client.post("optimize"), client.delete("clear")):
        assert answer.status_code == 200
        result = CacheOptimizationResult.model_validate_json(answer.content)
        assert (result.success, result.entries_after) == (True, 0)
        assert "0 entries remain" in result.message
