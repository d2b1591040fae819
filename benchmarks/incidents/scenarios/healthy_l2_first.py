"""A small L1 with skip_l1 stages what a large L2 holds: all is found, so keep off."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """60 prompts of 20 chunks in turn: 38 MB, all of which L2 holds."""
    documents = Documents()
    return mixed(320, (over_and_over([documents.new(20) for _ in range(60)]), 1))


INCIDENT = Incident(
    name="healthy_l2_first",
    story="everything moves to a large L2 at once, and a small L1 only stages loads",
    stage=Server(
        l1_mb=16,
        flags={"--l2-store-policy": "skip_l1"},
        l2={
            "type": "mock",
            "max_size_gb": 0.25,
            "mock_bandwidth_gb": 2.0,
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
    ),
    traffic=_log,
    bounds=Bounds(max_size_mb=64, max_l2_size_mb=512),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
