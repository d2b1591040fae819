"""Claims about advice on in-process LMCache: what it predicts is what a real engine then serves, and what it needs is said."""

import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from engine_process import CHUNK, EngineProcess
from real_cache import eventually

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.process import free_port
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, EvictionPolicy, L2Adapter, Mode, SupportLevel, SymptomCode, Verdict
from agent_tools.models.start_configuration import StartForm
from agent_tools.operations import Operations
from agent_tools.prediction.model_kv import model_kv
from agent_tools.recommender.migration import migration
from agent_tools.tuning.state import Outcome, TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.workload.readers import read_trace

MODEL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "dtype": "float16"}
"""The shape of the engine without a model."""
SMALL_MB = 1.0
"""Memory of 32 chunks; the longest prompt has 6."""
DRAW = random.Random(3)  # noqa: S311  a workload
PROMPTS = [(min(int(DRAW.paretovariate(0.9)), 60), 6, DRAW.randrange(CHUNK)) for _ in range(200)]
"""Questions about documents of different popularity: some 40 of them, of 6 chunks each."""
Engines = Callable[..., EngineProcess]


@pytest.fixture
def engines(lmcache: None) -> Iterator[Engines]:
    """Start real engines, which record their lookups in the folder that is given."""
    with ExitStack() as stack:

        def start(folder: Path, memory_mb: float = SMALL_MB, **more: Any) -> EngineProcess:
            engine = EngineProcess(
                free_port(),
                max_local_cpu_size=memory_mb / 1024,
                enable_chunk_statistics=True,
                chunk_statistics_strategy="file_hash",
                extra_config={"chunk_statistics_file_output_dir": str(folder)},
                **more,
            )
            stack.callback(engine.stop)
            return engine.ready()

        yield start


@pytest.fixture
def operations_on(tmp_path: Path) -> Iterator[Callable[[EngineProcess, Path, Bounds], Operations]]:
    with ExitStack() as stack:

        def on(engine: EngineProcess, folder: Path, bounds: Bounds) -> Operations:
            cache = CacheSettings(target=f"engine:{engine.url}", access_log=folder, bounds=bounds)
            operations = Operations(Registry(Settings(caches={"inside": cache}, state_folder=tmp_path / "state")))
            stack.callback(io_loop.run, operations.close)
            io_loop.run(operations.metrics, "inside")
            return operations

        yield on


def played(operations: Operations, engine: EngineProcess, prompts: Sequence[tuple[int, ...]] = PROMPTS) -> list[int]:
    """Play prompts, and wait until LMCache has counted them: it does so every ten seconds."""
    found = engine.play(*prompts)
    eventually(lambda: (io_loop.run(operations.metrics, "inside").total_requests or 0) >= len(prompts), seconds=60)
    return found


def rate(found: list[int]) -> float:
    return sum(found) / sum(chunks for _, chunks, _ in PROMPTS)


def predicted(operations: Operations, update: ConfigUpdate | None, size_mb: float = SMALL_MB) -> float:
    """The token hit rate that all prompts together would have, from an empty cache."""
    found, _ = io_loop.run(lambda: operations.forecast("inside", update, [size_mb]))
    return found.rows[0].server


def tuned(operations: Operations, mode: Mode) -> TuneReport:
    graph = build_tune_cache(operations=operations).compile()
    context = TuneContext(cache="inside", mode=mode, window_seconds=0, verify_seconds=0.1)
    report = io_loop.run(lambda: graph.ainvoke({"tune_reason": "a test"}, context=context))["tune_report"]
    return TuneReport.model_validate(report)


@pytest.mark.long
def test_a_larger_memory_gives_what_was_predicted_and_the_operator_is_told_how_to_set_it(
    engines: Engines, operations_on: Callable[..., Operations], tmp_path: Path
) -> None:
    engine = engines(tmp_path / "small")
    operations = operations_on(engine, tmp_path / "small", Bounds(max_size_mb=16, allow_restart=True))
    played(operations, engine)
    advice = io_loop.run(operations.recommend, "inside")
    assert advice.verdict is Verdict.ACT, advice.why
    assert advice.best is not None
    assert advice.best.update is not None
    assert advice.best.gain is not None
    assert advice.best.gain.lower > 0.05
    assert "in-process" not in advice.best.gain.method
    report = tuned(operations, Mode.AUTO)
    assert report.outcome is Outcome.NEEDS_OPERATOR, report.summary
    assert report.change is None
    assert report.plan is not None
    assert report.plan.command is not None
    assert "ends the requests" in (report.plan.loses or "")
    assert report.plan.for_the_operator == f"restart the engine with: {report.plan.command}"
    variables = dict(part.split("=", 1) for part in shlex.split(report.plan.command))
    size, policy = variables["LMCACHE_MAX_LOCAL_CPU_SIZE"], variables.get("LMCACHE_CACHE_POLICY", "LRU")
    larger = engines(tmp_path / "large", float(size) * 1024, cache_policy=policy)
    expected = predicted(operations, advice.best.update, float(size) * 1024)
    assert rate(larger.play(*PROMPTS)) == pytest.approx(expected, abs=0.01)


@pytest.mark.long
def test_another_policy_is_proposed_where_the_memory_may_not_grow(
    engines: Engines, operations_on: Callable[..., Operations], tmp_path: Path
) -> None:
    engine = engines(tmp_path / "lru")
    operations = operations_on(engine, tmp_path / "lru", Bounds(max_size_mb=SMALL_MB, allow_restart=True))
    played(operations, engine)
    advice = io_loop.run(operations.recommend, "inside")
    assert advice.best is not None, advice.why
    assert advice.best.update is not None
    assert advice.best.gain is not None
    assert advice.best.update.known() == {"eviction_policy": EvictionPolicy.LFU}
    other = engines(tmp_path / "lfu", cache_policy="LFU")
    assert rate(other.play(*PROMPTS)) == pytest.approx(predicted(operations, advice.best.update), abs=0.01)


@pytest.mark.long
def test_a_disk_that_the_operator_offers_is_attached_live_as_predicted(
    engines: Engines, operations_on: Callable[..., Operations], tmp_path: Path
) -> None:
    disk = L2Adapter(type="local_disk", settings={"path": str(tmp_path / "disk"), "max_capacity_gb": 16 / 1024})
    engine = engines(tmp_path / "record")
    operations = operations_on(engine, tmp_path / "record", Bounds(max_size_mb=SMALL_MB, l2_adapter=disk))
    played(operations, engine)
    advice = io_loop.run(operations.recommend, "inside")
    assert advice.best is not None, advice.why
    assert advice.best.update is not None
    assert advice.best.update.l2_adapters == (disk,)
    assert {change.how for change in advice.best.changes} == {SupportLevel.LIVE}
    from_the_start = engines(tmp_path / "other", local_disk=str(tmp_path / "its disk"), max_local_disk_size=16 / 1024)
    assert rate(from_the_start.play(*PROMPTS)) == pytest.approx(predicted(operations, advice.best.update), abs=0.01)
    assert tuned(operations, Mode.AUTO).change is not None
    assert io_loop.run(operations.settings, "inside").l2_adapters == (disk,)


def test_a_disk_that_is_there_is_predicted_and_is_no_fault(
    engines: Engines, operations_on: Callable[..., Operations], tmp_path: Path
) -> None:
    record, disk = tmp_path / "record", str(tmp_path / "disk")
    given = {"local_disk": disk, "max_local_disk_size": 2 / 1024}
    engine = engines(record, **given)
    operations = operations_on(engine, record, Bounds(max_size_mb=16, allow_restart=True))
    served = rate(played(operations, engine))
    found, _ = io_loop.run(lambda: operations.forecast("inside", sizes_mb=[SMALL_MB]))
    assert found.second_tier == "a local disk of 64 chunks"
    assert found.rows[0].server == pytest.approx(served, abs=0.01)
    assert found.rows[0].from_l2 > 0.05
    tenants = io_loop.run(operations.tenants, "inside")
    assert "in-process LMCache does not count by tenant" in (tenants.no_usage or "")
    assert [one.prompts.count for one in tenants.models.values() if one.prompts] == [len(PROMPTS)]
    codes = {symptom.code for symptom in io_loop.run(operations.recommend, "inside").symptoms}
    assert SymptomCode.L2_UNBOUNDED not in codes
    told = migration(given | {"max_local_cpu_size": SMALL_MB / 1024, "chunk_size": CHUNK}, log_in(record), model_kv(MODEL))
    assert told.present_with_tier is not None
    assert told.present_with_tier == pytest.approx(served, abs=0.01)
    assert told.present_with_tier > told.present_hit_rate + 0.05
    assert told.present_from_tier == pytest.approx(found.rows[0].from_l2, abs=1e-9)


@pytest.mark.long
def test_a_remote_store_is_predicted_as_one_that_keeps_everything(
    engines: Engines, operations_on: Callable[..., Operations], tmp_path: Path
) -> None:
    record = tmp_path / "record"
    (tmp_path / "store").mkdir()
    given = {"remote_url": f"fs://localhost:0{tmp_path}/store", "remote_serde": "naive"}
    engine = engines(record, **given)
    operations = operations_on(engine, record, Bounds(max_size_mb=16, allow_restart=True))
    served = rate(played(operations, engine))
    found, _ = io_loop.run(lambda: operations.forecast("inside", sizes_mb=[SMALL_MB]))
    assert found.second_tier == "a remote store that keeps everything"
    assert found.rows[0].server == pytest.approx(served, abs=0.01)
    assert found.rows[0].from_l2 > 0.05
    told = migration(given | {"max_local_cpu_size": SMALL_MB / 1024, "chunk_size": CHUNK}, log_in(record), model_kv(MODEL))
    assert told.present_with_tier == pytest.approx(served, abs=0.01)
    for notes in (found.notes, told.notes):
        assert any("taken to keep all" in note for note in notes)


@pytest.mark.long
def test_no_disk_is_advised_where_a_prompt_is_longer_than_the_memory(
    engines: Engines, operations_on: Callable[..., Operations], tmp_path: Path
) -> None:
    disk = L2Adapter(type="local_disk", settings={"path": str(tmp_path / "disk"), "max_capacity_gb": 16 / 1024})
    engine = engines(tmp_path / "record", 5 / 32)  # five chunks
    operations = operations_on(engine, tmp_path / "record", Bounds(max_size_mb=5 / 32, l2_adapter=disk))
    played(operations, engine, PROMPTS[:60])
    advice = io_loop.run(operations.recommend, "inside")
    assert advice.verdict is Verdict.DO_NOTHING, advice.why
    assert not [one for one in advice.recommendations if one.update and one.update.l2_adapters], "the engine would hang"


def log_in(record: Path) -> Any:
    return read_trace(record, chunk_size=CHUNK)


@pytest.mark.long
def test_a_memory_that_only_passes_chunks_on_is_read_as_that_and_not_predicted(
    engines: Engines, operations_on: Callable[..., Operations], tmp_path: Path
) -> None:
    record, disk = tmp_path / "record", str(tmp_path / "disk")
    engine = engines(record, local_cpu=False, local_disk=disk, max_local_disk_size=8 / 1024)
    operations = operations_on(engine, record, Bounds(max_size_mb=16, allow_restart=True))
    played(operations, engine, PROMPTS[:60])
    assert io_loop.run(operations.settings, "inside").l2_store_policy == "skip_l1"
    advice = io_loop.run(operations.recommend, "inside")
    assert (advice.verdict, advice.recommendations) == (Verdict.DO_NOTHING, ())
    found, _ = io_loop.run(lambda: operations.forecast("inside", sizes_mb=[SMALL_MB]))
    assert any("local_cpu false" in note for note in found.notes)
    assert "LMCACHE_LOCAL_CPU=False" in io_loop.run(operations.export, "inside", StartForm.ENV).text
