"""Claims about outages: an engine whose registration is gone reads as an outage at once, whatever the totals were before."""

from pathlib import Path

import pytest
from real_cache import Launch, eventually
from real_logs import CHUNK_SIZE, conversations, log_of

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.io_loop import io_loop
from agent_tools.models import Severity, SymptomCode
from agent_tools.operations import Operations
from agent_tools.workload.replay import replay
from benchmarks.incidents.beside import look_up_only

PROMPTS = [range(10 * n, 10 * n + 10) for n in range(5)]


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "first look"])
def test_a_model_that_nobody_registered_is_the_first_symptom(launch: Launch, tmp_path: Path, *, watched: bool) -> None:
    """Case 10: many good lookups, then all of them end with ``no_gpu_context``."""
    process = launch({})
    settings = Settings(caches={"prod": CacheSettings(target=process.http_url)}, state_folder=tmp_path)
    operations = Operations(Registry(settings))
    try:
        replay(log_of(*conversations(100, 4), *conversations(100, 4)), process.rpc_url)
        eventually(lambda: counted_lookups(operations) >= 200 if watched else True)
        found = look_up_only(process.rpc_url, "toy/m", 2, [(one, CHUNK_SIZE) for one in PROMPTS * 6])
        assert found == 0
        eventually(lambda: (io_loop.run(operations.metrics, "prod").unregistered_lookups or 0) >= 30)
        status = io_loop.run(operations.status, "prod")
        worst = io_loop.run(operations.diagnose, "prod")[0]
    finally:
        io_loop.run(operations.close)
    assert status.symptoms[0] == "model_not_registered"
    assert (worst.code, worst.severity) == (SymptomCode.MODEL_NOT_REGISTERED, Severity.CRITICAL)
    assert "toy/m" in worst.summary
    assert "restart the engine" in worst.summary
    assert status.metrics.unregistered_models == {"toy/m": 30}
    assert status.metrics.missing_models == ("toy/m",)


def counted_lookups(operations: Operations) -> int:
    """The lookups of a reading, which then begins the last minute."""
    return io_loop.run(operations.metrics, "prod").total_requests or 0
