"""Claims about a real server whose L2 evicts by tenant: its accounts, its quotas, and what becomes of a tenant without one."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from real_cache import Launch, eventually
from real_logs import CHUNK_SIZE, conversations, log_of

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.errors import OutOfBoundsError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, SupportLevel, SymptomCode, VerificationVerdict
from agent_tools.operations import Operations
from agent_tools.workload.replay import ReplaySettings, replay

ADAPTER = {
    "type": "mock",
    "max_size_gb": 16 / 1024,
    "mock_bandwidth_gb": 1.0,
    "eviction": {"eviction_policy": "IsolatedLRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
}


@pytest.fixture(scope="module")
def process(launch: Launch) -> ServerProcess:
    process = launch({"--l2-adapter": [json.dumps(ADAPTER)], "--l1-size-gb": 64 / 1024})
    httpx.put(f"{process.http_url}/quota/kept", json={"limit_gb": 4 / 1024}).raise_for_status()
    replay(log_of(*conversations(40, 2), tenants=("kept", "forgotten")), process.rpc_url, ReplaySettings(clients=1))
    return process


@pytest.fixture
def operations_on(process: ServerProcess, tmp_path: Path) -> Iterator[Operations]:
    prod = CacheSettings(target=process.http_url, bounds=Bounds(max_quotas_mb=12), cooldown_seconds=0)
    operations = Operations(Registry(Settings(caches={"prod": prod}, state_folder=tmp_path)))
    yield operations
    io_loop.run(operations.close)


def test_what_a_tenant_without_quota_stores_is_deleted_and_the_diagnosis_names_it(process: ServerProcess, tmp_path: Path) -> None:
    settings = Settings(caches={"prod": CacheSettings(target=process.http_url)}, state_folder=tmp_path)
    operations = Operations(Registry(settings))
    try:
        config, _ = io_loop.run(operations.config, "prod")
        assert config.tenant_quotas_mb == {"kept": 4.0}
        assert (config.l2_adapters or ())[0].size_mb == 16
        eventually(lambda: io_loop.run(operations.metrics, "prod").l2_evictions == 40)
        metrics = io_loop.run(operations.metrics, "prod")
        chunk_mb = CHUNK_SIZE * 128 / 2**20
        assert (metrics.l2_size_mb, metrics.l2_used_mb) == (pytest.approx(16, abs=0.01), pytest.approx(40 * chunk_mb))
        told = {symptom.code: symptom for symptom in io_loop.run(operations.diagnose, "prod")}
        assert (
            "1 tenants with traffic have no quota on this server: 'forgotten'" in told[SymptomCode.TENANT_WITHOUT_QUOTA].summary
        )
        assert SymptomCode.L2_UNBOUNDED not in told
    finally:
        io_loop.run(operations.close)


def test_loads_from_l2_are_timed(process: ServerProcess, tmp_path: Path) -> None:
    settings = Settings(caches={"prod": CacheSettings(target=process.http_url)}, state_folder=tmp_path)
    operations = Operations(Registry(settings))
    try:
        assert io_loop.run(operations.metrics, "prod").l2_load_gb_per_second is None
        io_loop.run(operations.clear, "prod", "test")
        replay(log_of(range(2), tenants=("kept",)), process.rpc_url, ReplaySettings(clients=1))
        metrics = eventually(lambda: found if (found := io_loop.run(operations.metrics, "prod")).tokens.hit_l2 else None)
        assert metrics.tokens.hit_l2 == 2 * CHUNK_SIZE
        assert 0 < (metrics.l2_load_gb_per_second or 0) < 100
    finally:
        io_loop.run(operations.close)


def test_tenants_are_told_with_what_they_asked_what_they_hold_and_their_quota(operations_on: Operations) -> None:
    eventually(lambda: _held(operations_on, "forgotten") == 0)  # it has no quota
    tenants = io_loop.run(operations_on.tenants, "prod").tenants
    assert tenants.keys() == {"forgotten", "kept"}
    assert (tenants["kept"].usage.quota_mb, tenants["forgotten"].usage.quota_mb) == (4.0, None)
    assert tenants["kept"].usage.l2_mb == pytest.approx(40 * CHUNK_SIZE * 128 / 2**20)
    assert tenants["forgotten"].tokens.requested > 0


def test_quotas_are_changed_and_taken_back_while_it_runs(operations_on: Operations, process: ServerProcess) -> None:
    quotas = {"kept": 6.0, "forgotten": 3.3}
    eventually(lambda: _held(operations_on, "forgotten") == 0)  # it had no quota until now
    plan = io_loop.run(operations_on.plan, "prod", ConfigUpdate(tenant_quotas_mb=quotas), "a test")
    assert all(change.how is SupportLevel.LIVE for change in plan.changes)
    applied = io_loop.run(operations_on.apply, plan, "test")
    assert applied.config.tenant_quotas_mb == pytest.approx(quotas, abs=1e-4)
    replay(log_of(range(100, 110), tenants=("forgotten",)), process.rpc_url, ReplaySettings(clients=1))
    held = eventually(lambda: _held(operations_on, "forgotten"))
    assert held == pytest.approx(10 * CHUNK_SIZE * 128 / 2**20)
    # What it would set back leaves "forgotten" without a quota, and so without what it has stored since.
    with pytest.raises(UnsupportedError, match="list forgotten as well"):
        io_loop.run(operations_on.undo, "prod", applied.change_id, "test")
    assert io_loop.run(operations_on.config, "prod")[0].tenant_quotas_mb == pytest.approx(quotas, abs=1e-4)


@pytest.mark.parametrize(
    ("quotas", "error", "said"),
    [
        ({"kept": 6.0}, UnsupportedError, "list forgotten as well"),
        ({"kept": 6.0, "forgotten": 1.0, "a@b": 1.0}, UnsupportedError, "'a@b' is not a cache salt"),
        ({"kept": 12.0, "forgotten": 1.0}, OutOfBoundsError, r"13 MB in all are above the operator's bound of 12"),
    ],
)
def test_a_quota_that_would_hurt_or_cannot_be_is_refused(
    operations_on: Operations, quotas: dict[str, float], error: type[Exception], said: str
) -> None:
    before = io_loop.run(operations_on.config, "prod")[0].tenant_quotas_mb
    with pytest.raises(error, match=said):
        io_loop.run(operations_on.plan, "prod", ConfigUpdate(tenant_quotas_mb=quotas), "a test")
    assert io_loop.run(operations_on.config, "prod")[0].tenant_quotas_mb == before


def _held(operations: Operations, tenant: str) -> float | None:
    return io_loop.run(operations.tenants, "prod").tenants[tenant].usage.l2_mb


def test_a_change_of_quotas_is_verified(operations_on: Operations, process: ServerProcess) -> None:
    """A tenant without a quota finds nothing again in L2 once L1 is emptied; with one it finds all."""
    log = log_of(*conversations(40, 4), tenants=("later",))

    def twice() -> None:
        io_loop.run(operations_on.clear, "prod", "test")
        replay(log, process.rpc_url, ReplaySettings(clients=1, model="quotas"))
        eventually(lambda: io_loop.run(operations_on.tenants, "prod").tenants.get("later"))
        threading.Event().wait(2.5)  # L2 is written, and swept by quotas, a second at a time
        io_loop.run(operations_on.clear, "prod", "test")
        replay(log, process.rpc_url, ReplaySettings(clients=1, model="quotas"))
        threading.Event().wait(0.5)

    began = time.time()
    io_loop.run(operations_on.metrics, "prod")
    twice()
    before = io_loop.run(operations_on.baseline, "prod", time.time() - began)
    assert before.metrics.by_tenant["later"].hit == 0
    wanted = dict.fromkeys(io_loop.run(operations_on.tenants, "prod").tenants, 0.5) | {"later": 8.0}
    plan = io_loop.run(operations_on.plan, "prod", ConfigUpdate(tenant_quotas_mb=wanted), "a test")
    change = io_loop.run(operations_on.apply, plan, "test")
    traffic = threading.Thread(target=twice)
    traffic.start()
    told = io_loop.run(operations_on.verify, change, before, 8)
    traffic.join()
    assert told.in_force
    assert told.verdict is not VerificationVerdict.WORSE
    assert told.after.by_tenant["later"].hit_l2 >= 160 * CHUNK_SIZE
