"""Claims about the way from in-process LMCache to a server: the command starts a real server that is set as said."""

import json
import random
import shlex
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from engine_process import CHUNK, CHUNK_BYTES, EngineProcess
from real_cache import Launch
from typer.testing import CliRunner

from agent_tools.caches.arguments import arguments_of, pairs_of
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.in_process.start_file import read_start_file
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.process import ServerProcess, free_port
from agent_tools.doors.cli import app
from agent_tools.errors import SettingsError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import EvictionPolicy
from agent_tools.operations import Operations
from agent_tools.prediction.model_kv import model_kv
from agent_tools.recommender.migration import Migration, ServerSize, migration
from agent_tools.recommender.server_counterpart import counterpart_of
from agent_tools.workload.readers import read_trace
from agent_tools.workload.replay import ReplaySettings, replay

MODEL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "dtype": "float16"}
"""The shape of the engine without a model."""
PROMPTS = [(number * number % 23, 6, 5) for number in range(150)]


def settings(folder: Path) -> dict[str, Any]:
    return {
        "chunk_size": CHUNK,
        "local_cpu": True,
        "max_local_cpu_size": 2 / 1024,
        "cache_policy": "LRU",
        "pre_caching_hash_algorithm": "sha256_cbor",
        "enable_chunk_statistics": True,
        "chunk_statistics_strategy": "file_hash",
        "extra_config": {"chunk_statistics_file_output_dir": str(folder / "record")},
    }


@pytest.fixture(scope="module")
def recorded(
    lmcache: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any], float, EngineProcess]]:
    """A folder with the record of a real engine, its configuration, what it served, and the engine."""
    folder = tmp_path_factory.mktemp("inside")
    given = settings(folder)
    engine = EngineProcess(free_port(), **given)
    try:
        served = sum(engine.ready().play(*PROMPTS)) / sum(chunks for _, chunks, _ in PROMPTS)
        yield folder / "record", given, served, engine
    finally:
        engine.stop()


def test_the_command_starts_a_real_server_with_these_settings(
    recorded: tuple[Path, dict[str, Any], float, EngineProcess], tmp_path: Path
) -> None:
    record, given, served, _ = recorded
    (tmp_path / "lmcache.yaml").write_text(
        yaml.safe_dump(given | {"local_disk": f"file://{tmp_path}", "max_local_disk_size": 0.03}), encoding="utf-8"
    )
    (tmp_path / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    (tmp_path / "lmcache-server").mkdir()
    asked = ["migrate", "--from", str(tmp_path / "lmcache.yaml"), "--log", str(record), "--model", str(tmp_path), "--json"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    found = Migration.model_validate_json(told.stdout)
    assert found.present_hit_rate == pytest.approx(served, abs=0.01)
    assert shlex.split(found.command)[:2] == ["lmcache", "server"]
    repeated = ("--l2-adapter",)
    flags = {flag: [value] if flag in repeated else value for flag, value in pairs_of(arguments_of(found.command))}
    server = ServerProcess.launch(flags, tmp_path)
    try:
        io_loop.run(server.wait_ready)
        deployment = ServerDeployment(server.http_url)
        config = io_loop.run(deployment.config)
        io_loop.run(deployment.close)
        boot = httpx.get(f"{server.http_url}/config").json()
    finally:
        io_loop.run(server.stop)
    assert config.max_size_mb == pytest.approx(found.chosen.l1_mb)
    assert (config.chunk_size, config.eviction_policy, config.hash_algorithm) == (CHUNK, EvictionPolicy.LRU, "sha256_cbor")
    assert (config.eviction_watermark, config.eviction_ratio) == (found.chosen.watermark, found.chosen.ratio)
    (adapter,) = config.l2_adapters or ()
    assert (adapter.type, adapter.size_mb) == ("fs_native", pytest.approx(0.03 * 1024))
    assert boot["mp"]["chunk_size"] == CHUNK
    assert all(size.with_l2 is not None and size.with_l2 >= size.hit_rate - 0.01 for size in found.sizes)
    connector = json.loads(found.kv_transfer_config)
    assert connector["kv_connector"] == "LMCacheMPConnector"
    assert connector["kv_connector_extra_config"] == {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": 5555}


@pytest.mark.long
def test_the_server_serves_what_was_predicted(launch: Launch, tmp_path: Path) -> None:
    """The engine's requests, at their own times, on the server of the command and on a smaller one."""
    given = settings(tmp_path) | {"max_local_cpu_size": 8 / 1024}
    draw, pause = random.Random(3), threading.Event()  # noqa: S311  a workload
    engine = EngineProcess(free_port(), **given)
    try:
        engine.ready()
        for _ in range(300):  # eviction runs once a second, so the requests must take their time
            engine.play((draw.randrange(120), 3, 5))
            pause.wait(0.05)
    finally:
        engine.stop()
    log = read_trace(tmp_path / "record", chunk_size=CHUNK)
    assert len(log) == 300
    found = migration(given, log, model_kv(MODEL))
    flags = dict(pairs_of(arguments_of(found.command)))

    def served(size: ServerSize) -> float:
        of_size = {
            "--l1-size-gb": size.l1_mb / 1024,
            "--eviction-trigger-watermark": size.watermark,
            "--eviction-ratio": size.ratio,
        }
        server = launch(flags | of_size)  # for the chosen size, what the command says anyway
        run = ReplaySettings(clients=1, pace=1, kv_bytes_per_token=CHUNK_BYTES // CHUNK)
        return replay(log, server.rpc_url, run).hit_rate or 0.0

    smaller = found.sizes[0]
    with ThreadPoolExecutor(2) as threads:
        as_said, less = threads.map(served, (found.chosen, smaller))
    assert as_said == pytest.approx(found.chosen.hit_rate, abs=0.01)
    assert smaller.lower - 0.01 <= less <= smaller.upper + 0.01
    assert as_said - less > 0.1  # the size matters, so the agreement is not by chance


def test_what_is_chosen_is_as_good_as_today_or_said_not_to_be(
    recorded: tuple[Path, dict[str, Any], float, EngineProcess],
) -> None:
    record, given, _, _ = recorded
    found = migration(given, read_trace(record, chunk_size=CHUNK), model_kv(MODEL), gpu_free_gb=0.001)
    assert found.present_saved is not None
    assert found.chosen.saved is not None
    worse = found.chosen.saved < found.present_saved - 0.005
    assert worse == any("no size up to" in note for note in found.notes)
    assert found.present_saved <= found.present_hit_rate
    assert all(size.saved is not None and size.saved <= size.hit_rate + 1e-9 for size in found.sizes)


def test_no_watermark_is_chosen_under_which_a_large_request_would_freeze_l1(
    recorded: tuple[Path, dict[str, Any], float, EngineProcess],
) -> None:
    record, given, _, _ = recorded
    log = read_trace(record, chunk_size=CHUNK)
    chunk_mb = model_kv(MODEL).bytes_per_rank * CHUNK / 2**20
    for size in migration(given, log, model_kv(MODEL)).sizes:
        largest_mb = int(log.chunks_per_request.max()) * chunk_mb
        assert size.watermark <= 0.8 or largest_mb <= (1 - size.watermark) * size.l1_mb + 1e-9


def test_the_operation_takes_the_settings_in_force(
    recorded: tuple[Path, dict[str, Any], float, EngineProcess], tmp_path: Path
) -> None:
    record, _, _, engine = recorded
    named = {"inside": CacheSettings(target=f"engine:{engine.url}", access_log=record), "toy": CacheSettings(target="simulated:")}
    operations = Operations(Registry(Settings(caches=named, state_folder=tmp_path / "state")))
    try:
        found = io_loop.run(operations.migration, "inside", model_kv(MODEL))
        with pytest.raises(UnsupportedError, match="not inside an engine"):
            io_loop.run(operations.migration, "toy", model_kv(MODEL))
    finally:
        io_loop.run(operations.registry.close)
    assert found.present_mb == pytest.approx(2.0)
    assert f"--chunk-size {CHUNK}" in found.command


def test_sizes_per_worker_become_sizes_of_the_server() -> None:
    found = counterpart_of({"local_disk": "/kv/", "max_local_disk_size": 10}, 8)
    assert [adapter.size_mb for adapter in found.adapters] == [80 * 1024]


def test_what_has_no_counterpart_is_said_and_secrets_are_not() -> None:
    given = {
        "cache_policy": "MRU", "save_unfull_chunk": True, "enable_p2p": True, "enable_pd": False, "use_layerwise": None,
        "remote_url": "redis://me:hush@kv.example:6390", "save_decode_cache": True, "of_tomorrow": 1,
        "pre_caching_hash_algorithm": "builtin", "extra_config": {"my_backend": 3, "chunk_statistics_file_max_count": 2},
    }  # fmt: skip
    found = counterpart_of(given, 1)
    assert set(found.lost) == {"cache_policy", "save_unfull_chunk", "enable_p2p", "of_tomorrow", "extra_config"}
    assert found.connector == {"lmcache.mp.save_decode_cache": True}
    (adapter,) = map(json.loads, found.flags["--l2-adapter"])
    assert (adapter["type"], adapter["host"], adapter["port"], adapter["password"]) == ("resp", "kv.example", 6390, "***")
    assert "hush" not in str((found.flags, found.kept, found.lost, found.notes))


@pytest.mark.parametrize(
    "text",
    [
        "chunk_size: 64\nmax_local_cpu_size: 1.5\nlocal_cpu: true\n",
        "# a\nexport LMCACHE_CHUNK_SIZE=64\nLMCACHE_MAX_LOCAL_CPU_SIZE='1.5'\nLMCACHE_LOCAL_CPU=True\nLMCACHE_LOG_LEVEL=1\n",
    ],
)
def test_a_yaml_file_and_variables_say_the_same(text: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_text(text, encoding="utf-8")
    assert read_start_file(tmp_path / "given") == {"chunk_size": 64, "max_local_cpu_size": 1.5, "local_cpu": True}


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "LMCACHE_CHUNK_SIZE='64\n", "1: 2\n"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError):
        read_start_file(tmp_path / "given")


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"cache_policy": "ARC"}, "LRU, LFU"), ({"max_local_cpu_size": "much"}, "above 0"), ({"chunk_size": 128}, "128")],
)
def test_a_configuration_that_does_not_fit_is_refused(
    changed: dict[str, Any], words: str, recorded: tuple[Path, dict[str, Any], float, EngineProcess]
) -> None:
    record, given, _, _ = recorded
    with pytest.raises(SettingsError, match=words):
        migration(given | changed, read_trace(record, chunk_size=CHUNK), model_kv(MODEL))
