"""Claims about the lookups that in-process LMCache records itself: a real engine's record, and predictions from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_process import CHUNK, CHUNK_BYTES, EngineProcess

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.in_process.deployment import InProcessDeployment
from agent_tools.deployments.in_process.lookup_record import bytes_of_chunk, of_latest_process
from agent_tools.deployments.server.process import free_port
from agent_tools.errors import SettingsError
from agent_tools.io_loop import io_loop
from agent_tools.models import MB
from agent_tools.operations import Operations
from agent_tools.prediction.in_process_model import simulate_in_process

PROMPTS = [(number * number % 17, 6, 5) for number in range(120)]
"""120 prompts of six chunks and a started one, 9 of them different, for an L1 of 64 chunks."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def engine(lmcache: None, folder: Path) -> Iterator[EngineProcess]:
    engine = EngineProcess(
        free_port(),
        max_local_cpu_size=1.5 / 1024,
        cache_policy="LFU",
        enable_chunk_statistics=True,
        chunk_statistics_strategy="file_hash",
        extra_config={"chunk_statistics_file_output_dir": str(folder)},
    )
    try:
        yield engine.ready()
    finally:
        engine.stop()


def test_what_a_real_engine_serves_is_predicted_from_its_own_record(engine: EngineProcess, folder: Path, tmp_path: Path) -> None:
    served = sum(engine.play(*PROMPTS)) / sum(chunks for _, chunks, _ in PROMPTS)
    deployment = InProcessDeployment([engine.url], access_log=folder)
    log = io_loop.run(deployment.access_log)
    io_loop.run(deployment.close)
    assert log is not None
    assert (len(log), log.chunk_size, log.chunk_bytes) == (len(PROMPTS), CHUNK, CHUNK_BYTES)
    assert (log.chunks_per_request == 6).all()  # the started chunk is left out
    run = simulate_in_process(log, 1.5 * MB / CHUNK_BYTES, "LFU")
    assert run.hit_rate == pytest.approx(served, abs=0.01)

    named = CacheSettings(target=f"engine:{engine.url}", access_log=folder)
    operations = Operations(Registry(Settings(caches={"inside": named}, state_folder=tmp_path / "state")))
    forecast, _ = io_loop.run(lambda: operations.forecast("inside", sizes_mb=[1.5]))
    io_loop.run(operations.registry.close)
    assert (forecast.in_process, forecast.policy) == (True, "LFU")
    assert forecast.rows[0].server == pytest.approx(served, abs=0.01)


def test_a_folder_that_is_not_there_is_named(lmcache: None, engine: EngineProcess, tmp_path: Path) -> None:
    deployment = InProcessDeployment([engine.url], access_log=tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="nowhere does not exist on this machine"):
        io_loop.run(deployment.access_log)
    io_loop.run(deployment.close)


def test_only_the_files_of_the_latest_process_are_read() -> None:
    names = ["100_000000", "150_000001", "200_000000", "260_000001"]
    files = [Path(f"chunk_hashes_{name}.jsonl") for name in names]
    assert of_latest_process(files) == files[2:]
    assert of_latest_process(files[1:2]) == files[1:2]  # older files were deleted


@pytest.mark.parametrize(
    ("meta", "size"),
    [
        ({"kv_shape": [1, 2, 64, 2, 64], "kv_dtype": "torch.float16"}, CHUNK_BYTES),
        ({"kv_shape": [27, 1, 256, 1, 576], "kv_dtype": "torch.bfloat16"}, 27 * 256 * 576 * 2),
        ({"kv_shape": None, "kv_dtype": "torch.float16"}, None),
        ({"kv_shape": [1, 2], "kv_dtype": "odd"}, None),
        ({}, None),
    ],
)
def test_the_bytes_of_a_chunk_come_from_the_layout_or_are_unknown(meta: dict[str, object], size: int | None) -> None:
    assert bytes_of_chunk(meta) == size
