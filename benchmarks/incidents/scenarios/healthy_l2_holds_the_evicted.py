"""A plain server without a log evicts, and its L2 holds all that L1 drops: no hit is lost."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """40 prompts of 20 chunks in turn, 2 MB a second: 25 MB, all of which L2 holds."""
    documents = Documents()
    return mixed(130, (over_and_over([documents.new(20) for _ in range(40)]), 1))


INCIDENT = Incident(
    name="healthy_l2_holds_the_evicted",
    story="L1 evicts all the time, and everything it drops is in an L2 that has room for it",
    stage=Server(
        l1_mb=16,
        module=False,
        log=False,
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
    expected=Expected(
        symptoms=frozenset({SymptomCode.NOTHING_WRONG}),
        action=Action.NOTHING,
        never=frozenset({SymptomCode.EVICTS_UNJUDGED, SymptomCode.L1_TOO_SMALL}),
    ),
    remark="the first traffic, 5 MB a second, outran eviction: the server dropped stores and loads, as the product said, so that"
    " the case was not healthy.",
)
