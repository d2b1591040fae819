"""L2 delivers slower than the engine computes: faster storage or no L2; a change of L1's settings is no cure."""

from agent_tools.models import SymptomCode
from agent_tools.models.cost import Economics, Prefill
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """40 prompts of 20 chunks in turn, four a second: L1 has room for 25, so that LRU finds none of them there."""
    documents = Documents()
    return mixed(160, (over_and_over([documents.new(20) for _ in range(40)]), 1))


INCIDENT = Incident(
    name="l2_slow",
    story="L2 delivers 2 MB/s where the engine computes 11 MB of KV a second: its hits make requests wait",
    stage=Server(
        l1_mb=16,
        flags={"--l2-prefetch-policy": "retain"},
        l2={
            "type": "mock",
            "max_size_gb": 0.5,
            "mock_bandwidth_gb": 0.002,
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
        economics=Economics(prefill=Prefill(tokens_per_second=90_000)),
    ),
    traffic=_log,
    clients=4,
    expected=Expected(symptoms=frozenset({SymptomCode.L2_SLOW}), action=Action.OPERATOR, told="detach it"),
    remark="the slowness is that of LMCache's mock adapter, whose bandwidth is set; its fault_inject adapter drops loads and"
    " delays none (see `l2_loses_chunks`).",
)
