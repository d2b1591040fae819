"""One tenant scans and reuses nothing, and has most of L2: its quota is worth more to the other one."""

from agent_tools.models import Bounds
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, all_new, mixed, over_and_over


def _log() -> AccessLog:
    """``agents`` asks for 24 prompts of 30 chunks in turn, 22 MB in all; ``scan`` for new ones only; seven a second in all."""
    documents = Documents()
    agents = over_and_over([documents.new(30) for _ in range(24)])
    return mixed(280, (agents, 1), (all_new(documents, 30), 1), tenants=("agents", "scan"))


INCIDENT = Incident(
    name="noisy_neighbour",
    story="a tenant that scans and reuses nothing has three quarters of L2, and the agents beside it find little again",
    stage=Server(
        l1_mb=16,
        flags={"--eviction-ratio": 0.5},
        l2={
            "type": "mock",
            "max_size_gb": 64 / 1024,
            "mock_bandwidth_gb": 1.0,
            "eviction": {"eviction_policy": "IsolatedLRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
        quotas_mb={"agents": 12, "scan": 36},
    ),
    traffic=_log,
    bounds=Bounds(max_quotas_mb=48),
    by="quotas",
    expected=Expected(symptoms=frozenset(), action=Action.CHANGE, settings=frozenset({"tenant_quotas_mb"}), gain=0.1),
    remark="no SymptomCode is about neighbours: what names them is `lmcache_recommend_tenant_quotas`, whose advice is followed"
    " here.",
)
