"""The contract of `LMCacheClient`: on the simulated cache everywhere, on a real private one where lmcache is installed."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_cache import SIMULATED, TWO_ON_ONE_MACHINE

from agent_tools import LMCacheClient
from agent_tools.caches.own_bounds import free_mb
from agent_tools.caches.registry import Registry, _default_settings
from agent_tools.caches.settings import FILE_VARIABLE, Settings
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import (
    LMCacheToolError,
    NothingToChangeError,
    OutOfBoundsError,
    SettingsError,
    UnknownCacheError,
    UnknownChangeError,
    UnreachableError,
    UnsupportedError,
)
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, CacheConfig, ConfigUpdate, EvictionPolicy, Mode
from agent_tools.operations import Operations

DEFAULTS = CacheConfig(
    enabled=True,
    max_size_mb=1024.0,
    eviction_policy=EvictionPolicy.LRU,
    enable_prefix_caching=True,
    min_prefix_length=16,
    cache_warmup=False,
    auto_eviction=True,
    enable_sharing=True,
    max_concurrent_users=100,
)
"""The mission's nine settings at its defaults."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory without a caches.toml, a state folder, and shared operations of this test alone."""
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("LMCACHE_AGENT_STATE_FOLDER", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    made: list[Operations] = []

    def shared() -> Operations:
        if not made:
            made.append(Operations(Registry(Settings.load())))
        return made[0]

    monkeypatch.setattr("agent_tools.client.shared_operations", shared)
    yield tmp_path
    for operations in made:
        io_loop.run(operations.close)


EMBEDDED = pytest.param("embedded", marks=pytest.mark.skipif(SIMULATED, reason="lmcache is not installed"))
ON_BOTH = pytest.mark.parametrize("client", ["simulated", EMBEDDED], indirect=True)
"""For the tests that are worth the start of a real server."""


@pytest.fixture
def client(request: pytest.FixtureRequest, home: Path) -> Iterator[LMCacheClient]:
    """A client of a small private cache without stated bounds, that nobody asks."""
    kind = getattr(request, "param", "simulated")
    if kind == "simulated":
        given = 'target = "simulated:"\n[caches.mine.simulated]\nl1_size_mb = 16\ntraffic = { think_seconds = 3600 }'
    else:
        folder = request.getfixturevalue("arena_folder")
        given = f'embedded = {{ l1_size_mb = 16, arena_folder = "{folder}" }}'
    (home / "caches.toml").write_text(f"[caches.mine]\n{given}\n", encoding="utf-8")
    request.getfixturevalue("monkeypatch").setenv(FILE_VARIABLE, str(home / "caches.toml"))
    with LMCacheClient("mine") as client:
        assert repr(client) == f"LMCacheClient('mine', backend='{kind}')"
        yield client


# ---- what the mission asks for ----


@pytest.mark.skipif((free_mb(Path("/dev/shm")) or 0) < 5000, reason="2 GB of free memory are needed")
def test_a_cache_of_ones_own_starts_as_configured() -> None:
    with LMCacheClient(config=CacheConfig(max_size_mb=2048.0)) as client:
        assert client.get_config().max_size_mb == 2048.0
        assert ("simulated" in repr(client)) is (importlib.util.find_spec("lmcache") is None)


def test_another_policy_and_size_are_set_on_a_simulated_cache() -> None:
    with LMCacheClient("simulated:") as client:
        config = client.update_config(CacheConfig(max_size_mb=4096.0, eviction_policy=EvictionPolicy.LFU))
        assert (config.max_size_mb, config.eviction_policy) == (4096.0, EvictionPolicy.LFU)
        assert client.get_config() == config


def test_a_policy_that_a_server_does_not_have_is_refused_in_one_sentence(server: ServerProcess) -> None:
    with LMCacheClient(server.http_url, bounds=Bounds(max_size_mb=8192)) as client:
        before = client.get_config()
        with pytest.raises(
            UnsupportedError, match=r"eviction_policy cannot be changed on http.*only LRU, ARC and noop"
        ) as refused:
            client.update_config(CacheConfig(max_size_mb=4096.0, eviction_policy=EvictionPolicy.LFU))
        assert "Nothing was changed" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert client.get_config() == before
        assert client.changes() == []


def test_a_status_carries_the_label_of_its_caller(client: LMCacheClient) -> None:
    own = client.get_status().instance_id
    status = client.get_status(instance_id="test")
    assert status.instance_id == "test" != own
    assert str(own) in status.notes["instance_id"]
    assert status.config == client.get_config()


@ON_BOTH
def test_the_missions_defaults_with_another_size_change_the_size_alone(client: LMCacheClient) -> None:
    assert client.is_available()
    before = client.get_config()
    after = client.update_config(DEFAULTS.model_copy(update={"max_size_mb": 32.0}), reason="a test")
    assert after == client.get_config() == before.model_copy(update={"max_size_mb": 32.0})
    assert client.last_change is not None
    assert [change.setting for change in client.last_change.plan.changes] == ["max_size_mb"]
    assert [(one.actor, one.reason, one.outcome.value) for one in client.changes()[-1:]] == [("client", "a test", "applied")]
    assert client.undo() == before == client.get_config()


@pytest.mark.parametrize(
    "change",
    [
        {"max_size_mb": 24.0},
        {"eviction_policy": "arc"},
        {"eviction_policy": "noop"},
        {"auto_eviction": False},
        {"eviction_watermark": 0.81},
        {"l2_prefetch_policy": "retain"},
        {"chunk_size": 512},
        {"chunk_size": 128},
    ],
)
def test_the_whole_configuration_with_one_change_is_that_change(client: LMCacheClient, change: dict[str, object]) -> None:
    before = client.get_config()
    after = client.update_config(CacheConfig.model_validate(before.model_dump() | change))
    for name, value in change.items():
        assert getattr(after, name) == value
    (asked, *more) = client.last_change.plan.changes  # type: ignore[union-attr]
    assert {asked.setting, *(one.setting for one in more)} <= {*change, "eviction_policy"}
    follow = {"eviction_policy", "auto_eviction", "min_prefix_length"}  # of a policy, and of the chunk size
    kept = {name: value for name, value in before.known().items() if name not in {*change, *follow}}
    assert kept.items() <= after.known().items()
    assert client.get_config() == after


@pytest.mark.parametrize(
    "held",
    [
        {"enabled": True},
        {"enable_prefix_caching": True},
        {"cache_warmup": False},
        {"auto_eviction": True},
        {"enable_sharing": True},
        {"min_prefix_length": 1},
        {"min_prefix_length": 256},
        {"max_concurrent_users": 1_000_000},
        {"max_size_mb": 16.0},
    ],
)
def test_a_value_that_holds_is_no_change_and_no_error(client: LMCacheClient, held: dict[str, object]) -> None:
    before = client.get_config()
    assert client.update_config(**held) == before
    assert client.update_config(ConfigUpdate.model_validate(held)) == before
    assert client.last_change is None
    assert client.changes() == []
    with pytest.raises(NothingToChangeError, match="mine already has these settings"):
        client.plan(**held)


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ({"enabled": False}, UnsupportedError, "enabled cannot be changed"),
        ({"enable_prefix_caching": False}, UnsupportedError, "enable_prefix_caching cannot be changed"),
        ({"cache_warmup": True}, UnsupportedError, "cache_warmup cannot be changed"),
        ({"enable_sharing": False}, UnsupportedError, "enable_sharing cannot be changed"),
        ({"min_prefix_length": 257}, UnsupportedError, "min_prefix_length cannot be changed"),
        ({"hash_algorithm": "md5"}, UnsupportedError, "hash_algorithm cannot be changed"),
        ({"max_size_mb": 1e9}, OutOfBoundsError, "max_size_mb=1e\\+09 is above"),
        ({"max_size_mb": -1}, UnsupportedError, "max_size_mb: Input should be greater than 0"),
        ({"size": 1}, UnsupportedError, "size: Extra inputs"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name_and_nothing_changes(
    client: LMCacheClient, wanted: dict[str, object], error: type[LMCacheToolError], said: str
) -> None:
    before = client.get_config()
    with pytest.raises(error, match=f"{said}.*[Nn]othing was changed"):
        client.update_config(**(wanted if "max_size_mb" in wanted else {"max_size_mb": 24} | wanted))
    assert client.get_config() == before
    assert client.changes() == []


# ---- which cache ----


def test_without_lmcache_the_default_is_simulated_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    _default_settings.cache_clear()
    try:
        with LMCacheClient() as client:
            assert "simulated" in repr(client)
            assert client.get_status().backend == "simulated"
            assert client.get_metrics().window.simulated
        with pytest.raises(UnsupportedError, match="needs LMCache"):
            LMCacheClient("embedded:")
    finally:
        _default_settings.cache_clear()


def test_a_cache_of_ones_own_has_all_settings_of_the_configuration() -> None:
    wanted = DEFAULTS.model_copy(update={"max_size_mb": 20.0, "chunk_size": 128, "eviction_watermark": 0.6})
    with LMCacheClient("simulated:", config=wanted) as client:
        config = client.get_config()
        assert (config.max_size_mb, config.chunk_size, config.eviction_watermark) == (20.0, 128, 0.6)
    with LMCacheClient("simulated:", config=CacheConfig(auto_eviction=False)) as client:
        assert client.get_config().eviction_policy is EvictionPolicy.NOOP
    with (
        LMCacheClient("simulated:", config=CacheConfig(enable_sharing=False)) as client,
        pytest.raises(UnsupportedError, match="enable_sharing is True, not False"),
    ):
        client.get_config()


def test_the_configuration_of_another_cache_must_hold(server: ServerProcess) -> None:
    with LMCacheClient(server.http_url) as client:
        now = client.get_config()
        assert not client._must_hold
    with LMCacheClient(server.http_url, config=now) as client:
        assert client.get_config() == now
    wrong = CacheConfig(max_size_mb=2048.0, eviction_watermark=0.123)
    for ask in (LMCacheClient.get_config, LMCacheClient.is_available, LMCacheClient.clear_cache, LMCacheClient.tune):
        with (
            LMCacheClient(server.http_url, config=wrong) as client,
            pytest.raises(UnsupportedError, match=r"max_size_mb is .*, not 2048\.0, eviction_watermark is .*, not 0\.123"),
        ):
            ask(client)


def test_a_server_that_does_not_answer_is_not_available() -> None:
    with LMCacheClient("http://127.0.0.1:9") as client:
        assert client.is_available() is False
        with pytest.raises(UnreachableError):
            client.get_metrics()


@pytest.mark.parametrize(
    ("cache", "error", "said"),
    [
        ("prod", UnknownCacheError, "no cache named 'prod'"),
        ("prod/server", UnknownCacheError, "no cache named 'prod'"),
        ("ftp://host", SettingsError, "ftp://host"),
    ],
)
def test_a_cache_that_cannot_be_is_refused_at_once(cache: str, error: type[LMCacheToolError], said: str) -> None:
    with pytest.raises(error, match=said):
        LMCacheClient(cache)


def test_clients_of_a_name_share_the_cache_and_closing_one_leaves_it(client: LMCacheClient) -> None:
    changed = client.update_config(eviction_watermark=0.5)
    with LMCacheClient("mine") as other:
        assert other.get_config() == changed
    assert client.get_config() == changed


def test_bounds_narrow_what_the_client_may_do(client: LMCacheClient) -> None:
    bounded = LMCacheClient("mine", bounds=Bounds(max_size_mb=20, max_concurrent_users=100))
    with pytest.raises(OutOfBoundsError, match="above the operator's bound of 20"):
        bounded.update_config(max_size_mb=24)
    with pytest.raises(OutOfBoundsError, match="max_concurrent_users=101 is above the operator's bound of 100"):
        bounded.update_config(max_concurrent_users=101)
    assert bounded.update_config(max_size_mb=20, max_concurrent_users=100).max_size_mb == 20
    with (
        LMCacheClient("simulated:", bounds=Bounds(max_size_mb=16_384)) as stated,
        pytest.raises(OutOfBoundsError, match="restart"),
    ):
        stated.update_config(max_size_mb=4096)


# ---- the rest ----


@ON_BOTH
def test_it_reads_advises_and_changes_what_is_stored(client: LMCacheClient) -> None:
    assert client.get_metrics(window_seconds=0.01).total_size_mb == 16
    assert client.recommend().why
    assert [symptom.summary for symptom in client.diagnose()]
    plan = client.plan(eviction_watermark=0.6, reason="a test")
    assert (str(plan), client.get_config().eviction_watermark) == ("eviction_watermark 0.8 -> 0.6 (live)", 0.8)
    assert client.optimize(50).success
    assert client.clear_cache("a test").entries_after == 0
    assert [one.operation for one in client.changes() if one.outcome.value == "applied"] == ["optimize", "clear"]
    report = client.tune(Mode.RECOMMEND, window_seconds=0)
    assert (report.mode, report.change, report.advice is not None) == (Mode.RECOMMEND, None, True)


def test_it_predicts_from_the_requests_so_far() -> None:
    with LMCacheClient("simulated:") as client:
        client.get_metrics(window_seconds=1.5)
        forecast = client.predict([64.0, 16_384.0], eviction_watermark=0.6)
        assert [row.size_mb for row in forecast.rows] == [64.0, 16_384.0]
        assert forecast.watermark == 0.6


def test_it_sizes_the_tiers_for_another_model() -> None:
    model = {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "dtype": "bfloat16",
    }
    with LMCacheClient("simulated:") as client:
        client.get_metrics(window_seconds=1.5)
        found = client.size(model, gpu_free_gb=10, ranks=2, prefill_tokens_per_second=9000)
    assert (found.bytes_per_token, found.l0_tokens) == (131_072, 163_840)
    assert {row.tier for row in found.rows} >= {"L0", "L1"}
    assert all(row.ttft_ms is not None and row.price_month is None for row in found.rows)


def test_it_compares_itself_with_other_caches_of_its_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "caches.toml").write_text(TWO_ON_ONE_MACHINE, encoding="utf-8")
    monkeypatch.setenv(FILE_VARIABLE, str(home / "caches.toml"))
    with LMCacheClient("spare") as client:
        found = client.compare("starving")
        sizes = {one.cache: (one.size_mb, one.proposed_mb) for one in found.caches}
        assert found.verdict.value == "act"
        assert sizes["starving"][1] > sizes["starving"][0] == 192
        assert sizes["spare"][1] < sizes["spare"][0] == 1024
        assert client.compare("starving", budget_mb=600).budget_mb == 600
        assert client.get_config().max_size_mb == 1024, "nothing is changed"
        with pytest.raises(UnknownCacheError):
            client.compare("nobody")
        with pytest.raises(UnsupportedError, match="fewer than two caches can be compared"):
            client.compare()


def test_a_change_is_verified_by_its_id_or_as_the_last_one(client: LMCacheClient) -> None:
    with pytest.raises(UnknownChangeError, match="this client has changed nothing yet"):
        client.verify()
    client.update_config(eviction_watermark=0.7)
    assert client.last_change is not None
    for found in (client.verify(verify_seconds=0.1), client.verify(client.last_change.change_id, verify_seconds=0.1)):
        assert found.change_id == client.last_change.change_id
        assert found.in_force
        assert found.keep


def test_undo_needs_a_change(client: LMCacheClient) -> None:
    with pytest.raises(UnknownChangeError, match="changed nothing yet"):
        client.undo()
    with pytest.raises(UnknownChangeError, match="no change 'change-0'"):
        client.undo("change-0")


def test_an_update_is_given_in_one_way() -> None:
    with LMCacheClient("simulated:") as client:
        with pytest.raises(TypeError, match="either"):
            client.update_config()
        with pytest.raises(TypeError, match="either"):
            client.update_config(CacheConfig(max_size_mb=1), max_size_mb=2)


def test_a_change_of_a_private_cache_does_not_cut_the_window_of_another_of_its_name() -> None:
    with LMCacheClient("simulated:") as first:
        first.update_config(eviction_watermark=0.9)
        assert first.recommend().window.since_change, "its own change does"
    with LMCacheClient("simulated:") as second:
        assert not second.recommend().window.since_change
        second.update_config(eviction_watermark=0.9)  # and no cool-down of the other's
