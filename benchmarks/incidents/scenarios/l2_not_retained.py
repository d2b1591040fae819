"""What is hot is read from L2 at each request and dropped from L1 each time: policy retain keeps it there."""

from agent_tools.models import SymptomCode
from agent_tools.models.cost import Economics, Prefill
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, all_new, mixed, over_and_over


def _log() -> AccessLog:
    """Ten hot prompts, pushed out of L1 once by a scan, then asked for over and over beside a few new ones."""
    documents = Documents()
    hot, new = [documents.new(30) for _ in range(10)], all_new(documents, 30)
    scan = [next(new) for _ in range(20)]
    return mixed(560, (over_and_over(hot), 5), (new, 1), first=[*hot, *scan])


INCIDENT = Incident(
    name="l2_not_retained",
    story="a scan pushed the hot prompts out of L1; since then each is read from L2 at every request and dropped after it",
    stage=Server(
        l1_mb=16,
        l2={
            "type": "mock",
            "max_size_gb": 0.5,
            "mock_bandwidth_gb": 0.03,
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
        economics=Economics(prefill=Prefill(tokens_per_second=90_000)),
    ),
    traffic=_log,
    clients=4,
    expected=Expected(
        symptoms=frozenset({SymptomCode.L2_NOT_RETAINED}),
        action=Action.CHANGE,
        settings=frozenset({"l2_prefetch_policy"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        never=frozenset({SymptomCode.L2_SLOW}),
    ),
    remark="KV is 128 bytes a token here, a thousandth of a model's; bandwidth and prefill speed are scaled to it. What the"
    " change gains is time, not token hit rate, so that the hit rate has only not to fall.",
)
