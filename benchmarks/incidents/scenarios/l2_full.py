"""L2 evicts what is asked for again: a larger one, whose capacity is a start-up setting, so the operator's."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """45 prompts of 20 chunks in turn, five a second: 900, where L1 has room for 512 and L2 for 384, and both evict at 80 %."""
    documents = Documents()
    return mixed(200, (over_and_over([documents.new(20) for _ in range(45)]), 1))


INCIDENT = Incident(
    name="l2_full",
    story="L2 is full and evicts what is asked for again",
    stage=Server(
        l1_mb=16,
        l2={
            "type": "mock",
            "max_size_gb": 12 / 1024,
            "mock_bandwidth_gb": 1.0,
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
    ),
    traffic=_log,
    bounds=Bounds(max_l2_size_mb=64),
    expected=Expected(symptoms=frozenset({SymptomCode.L2_TOO_SMALL}), action=Action.OPERATOR, told="--l2-adapter"),
)
