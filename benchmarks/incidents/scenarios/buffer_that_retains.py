"""A buffer that keeps what it loads and never evicts fills up: LRU, or prefetch default."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """60 prompts of 20 chunks in turn: 38 MB, all of which L2 holds."""
    documents = Documents()
    return mixed(320, (over_and_over([documents.new(20) for _ in range(60)]), 1))


INCIDENT = Incident(
    name="buffer_that_retains",
    story="an L1 without eviction in front of L2 was told to retain what it loads, and is full for good",
    stage=Server(
        l1_mb=16,
        flags={"--eviction-policy": "noop", "--l2-store-policy": "skip_l1", "--l2-prefetch-policy": "retain"},
        l2={
            "type": "mock",
            "max_size_gb": 0.25,
            "mock_bandwidth_gb": 2.0,
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
    ),
    traffic=_log,
    bounds=Bounds(max_size_mb=64, max_l2_size_mb=512),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_NEVER_EVICTS}), action=Action.OPERATOR, told="l2_prefetch_policy default"
    ),
    remark="The model does not cover skip_l1, so that no gain is predicted and nothing is changed without a person.",
)
