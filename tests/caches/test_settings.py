"""Claims about the operator's settings: read from a file or the environment, and wrong ones are one sentence."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from agent_tools.caches import own_bounds
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import FILE_VARIABLE, CacheSettings, Settings
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.errors import SettingsError, UnknownCacheError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB, Bounds
from agent_tools.workload import memory

FILE = """
state_folder = "/var/lib/agent"

[caches.prod]
target = "http://127.0.0.1:8080"
access_log = "/var/log/lmcache"
bounds = { max_size_mb = 8192, allow_restart = true }

[caches.mine]
embedded = { l1_size_mb = 64, eviction_policy = "arc", l2_adapters = [{ type = "fs", settings = { base_path = "/kv" } }] }
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "agent.toml"
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    return path


def test_caches_are_read_from_the_file_that_the_variable_names(file: Path) -> None:
    file.write_text(FILE)
    settings = Settings.load()
    assert settings.state_folder == Path("/var/lib/agent")
    prod, mine = settings.caches["prod"], settings.caches["mine"]
    assert (prod.target, prod.bounds.max_size_mb, prod.bounds.allow_restart) == ("http://127.0.0.1:8080", 8192, True)
    assert (mine.target, mine.embedded.l1_size_mb) == ("embedded:", 64)
    assert mine.embedded.l2_adapters[0].settings == {"base_path": "/kv"}


@pytest.mark.parametrize("target", ["engine:http://127.0.0.1:7000", "embedded:", "simulated:"])
def test_a_module_token_for_what_has_no_module_is_refused_in_one_sentence(file: Path, target: str) -> None:
    file.write_text(f'[caches.prod]\ntarget = "{target}"\nmodule_token = "of-the-module"\n')
    with pytest.raises(SettingsError, match="module_token is for http: and fleet: only") as refused:
        Settings.load()
    assert "of-the-module" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", ["http://127.0.0.1:8080", "https://gateway.example/admin"])
def test_a_module_token_for_a_server_is_taken(file: Path, target: str) -> None:
    file.write_text(f'[caches.prod]\ntarget = "{target}"\nmodule_token = "of-the-module"\n')
    assert Settings.load().caches["prod"].token_of_module() is not None


def test_a_private_cache_without_stated_bounds_may_grow_to_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       99 kB\nMemAvailable:   102400000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(own_bounds, "_CGROUP", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=80_000 * MB))
    stated = Bounds(max_size_mb=64)
    caches = {
        "own": CacheSettings(),
        "simulated": CacheSettings(target="simulated:"),
        "stated": CacheSettings(bounds=stated),
        "foreign": CacheSettings(target="http://127.0.0.1:8080"),
    }
    registry = Registry(Settings(caches=caches, state_folder=tmp_path))
    assert registry.settings_of("own").bounds == Bounds(max_size_mb=40_000, allow_restart=True)
    assert registry.settings_of("simulated").bounds == Bounds(max_size_mb=50_000, allow_restart=True)
    assert registry.settings_of("stated").bounds == stated
    assert registry.settings_of("foreign").bounds == Bounds()
    (tmp_path / "memory.max").write_text(f"{3000 * MB}\n")
    (tmp_path / "memory.current").write_text(f"{1000 * MB}\n")
    assert own_bounds.free_mb() == 2000
    assert registry.settings_of("own").bounds.max_size_mb == 40_000, "bounds do not move while the cache grows"
    small = Registry(registry.settings)
    assert (small.settings_of("own").bounds.max_size_mb, small.settings_of("simulated").bounds.max_size_mb) == (1000, 16_384)


@pytest.fixture
def users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's settings file would be."""
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Settings.file()


def test_caches_toml_of_the_users_configuration_folder_is_the_default(users_file: Path, tmp_path: Path) -> None:
    assert users_file == tmp_path / "config" / "lmcache-agent" / "caches.toml"
    assert Settings.load().caches == {}
    users_file.parent.mkdir(parents=True)
    users_file.write_text("[caches.mine]\n")
    assert list(Settings.load().caches) == ["mine"]


def test_caches_toml_of_the_working_directory_is_read_only_when_it_is_named(
    users_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "caches.toml").write_text("[caches.here]\n")
    assert Settings.load().caches == {}
    monkeypatch.setenv(FILE_VARIABLE, "caches.toml")
    assert Settings.file().resolve() == tmp_path / "caches.toml"
    assert list(Settings.load().caches) == ["here"]


def test_an_unknown_cache_says_which_file_was_read_or_where_one_would_be(
    users_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        with pytest.raises(UnknownCacheError) as unknown:
            Registry(Settings.load()).get("prod")
        return str(unknown.value)

    monkeypatch.chdir(tmp_path)
    nothing = f"the caches are: default. No settings file was found; one would be read from {users_file}"
    assert said().endswith(nothing)
    (tmp_path / "caches.toml").write_text("[caches.prod]\n")
    hint = "the caches.toml in the working directory is not read unless you name it: --settings caches.toml"
    assert said().endswith(f"{nothing}; {hint}")
    users_file.parent.mkdir(parents=True)
    users_file.write_text("[caches.mine]\n")
    assert said().endswith(f"the caches are: default, mine. Settings were read from {users_file}")


def test_the_environment_goes_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(FILE)
    monkeypatch.setenv("LMCACHE_AGENT_STATE_FOLDER", "/elsewhere")
    settings = Settings.load()
    assert settings.state_folder == Path("/elsewhere")
    assert "prod" in settings.caches


def test_a_file_that_is_missing_is_named(file: Path) -> None:
    with pytest.raises(SettingsError, match=f"LMCACHE_AGENT_SETTINGS names {file}, which does not exist"):
        Settings.load()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[caches.a", "is not TOML"),
        ("[caches.a]\ntarget = 3", "caches.a.target"),
        ("[caches.a]\ntimeout_seconds = 0", "caches.a.timeout_seconds: Input should be greater than 0"),
        ("[caches.a]\nbounds = { max_size_mb = -1 }", "caches.a.bounds.max_size_mb: Input should be greater than 0"),
        ("[caches.a]\nbounds = { min_ratio = 0.5, max_ratio = 0.1 }", "min_ratio (0.5) is larger than max_ratio (0.1)"),
        ("[caches.a]\ntarghet = 'embedded:'", "caches.a.targhet: Extra inputs"),
        ("[cache.a]\n", "cache: Extra inputs"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as wrong:
        Settings.load()
    assert str(file) in str(wrong.value)
    assert said in str(wrong.value)


def test_a_file_that_is_not_text_is_a_settings_error(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not TOML"):
        Settings.load()
    file.unlink()
    file.mkdir()
    with pytest.raises(SettingsError):
        Settings.load()


# ---- the directory of names ----


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    caches = {"prod": CacheSettings(target="http://127.0.0.1:8080", timeout_seconds=7), "odd": CacheSettings(target="redis://h")}
    return Registry(Settings(caches=caches, state_folder=tmp_path))


def test_a_name_that_is_not_listed_is_refused_with_those_that_are(registry: Registry) -> None:
    with pytest.raises(UnknownCacheError, match=r"no cache named 'http://10\.0\.0\.1'; the caches are: default, odd, prod"):
        registry.get("http://10.0.0.1")


def test_an_address_gives_a_server_that_is_not_ours_and_is_kept(registry: Registry) -> None:
    cache = registry.get("prod")
    assert isinstance(cache.deployment, ServerDeployment)
    assert not cache.deployment.owned
    assert cache.deployment.admin.timeout == 7
    assert registry.get("prod") is cache
    io_loop.run(registry.close)


def test_a_target_of_another_kind_is_refused(registry: Registry) -> None:
    with pytest.raises(SettingsError, match="'redis://h' is not http://host:port, engine:"):
        registry.get("odd")


def test_the_default_cache_is_an_embedded_server_that_is_not_started_yet(lmcache: None, registry: Registry) -> None:
    cache = registry.get("default")
    assert cache.deployment.owned
    assert cache.deployment.backend == "embedded"
    io_loop.run(registry.close)
    assert not (registry.settings.state_folder / "logs").exists()
