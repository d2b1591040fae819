"""L1 is small, and a fast L2 with a bound holds the rest: all is found, so keep off."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """60 prompts of 20 chunks in turn, eight a second: L1 has room for 51 of them, L2 for all."""
    documents = Documents()
    return mixed(320, (over_and_over([documents.new(20) for _ in range(60)]), 1))


INCIDENT = Incident(
    name="healthy_two_tiers",
    story="L1 holds most of what is asked for, a fast and bounded L2 all of it, and what it gives is retained",
    stage=Server(
        l1_mb=32,
        flags={"--l2-prefetch-policy": "retain"},
        l2={
            "type": "mock",
            "max_size_gb": 128 / 1024,
            "mock_bandwidth_gb": 2.0,
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
    ),
    traffic=_log,
    bounds=Bounds(max_size_mb=64, max_l2_size_mb=256),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
