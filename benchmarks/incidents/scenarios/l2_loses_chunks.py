"""L2 says that it has chunks and then fails to load them: the storage is broken, and people have to look at it."""

from agent_tools.models import SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """40 prompts of 20 chunks in turn, five a second, for an L1 with room for 25."""
    documents = Documents()
    return mixed(200, (over_and_over([documents.new(20) for _ in range(40)]), 1))


INCIDENT = Incident(
    name="l2_loses_chunks",
    story="a tenth of the chunks that L2 says it has cannot be loaded, and all behind them in a prompt is recomputed",
    stage=Server(
        l1_mb=16,
        l2={
            "type": "fault_inject",
            "rate": 0.1,
            "inner": {
                "type": "mock",
                "max_size_gb": 0.5,
                "mock_bandwidth_gb": 1.0,
                "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
            },
        },
    ),
    traffic=_log,
    expected=Expected(symptoms=frozenset({SymptomCode.L2_LOSES_CHUNKS}), action=Action.OPERATOR, told="check the storage"),
    remark="this code came with the bench: l2_loads_fail was expected at first, which speaks of room in L1 and was not named"
    " either, since the product did not read that counter.",
)
