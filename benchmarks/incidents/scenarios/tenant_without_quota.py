"""An L2 that evicts by tenant wipes whoever has no quota: the operator has to give that tenant one."""

from agent_tools.models import SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed


def _log() -> AccessLog:
    """Two tenants in turn, 16 chunks a prompt, each asked for eight times by both."""
    return mixed(700, (in_turn(Documents(), at_once=7, times=8, chunks=16), 1), tenants=("kept", "forgotten"))


INCIDENT = Incident(
    name="tenant_without_quota",
    story="L2 evicts by tenant, and a tenant that came later was given no quota: all it stores there is deleted within a second",
    stage=Server(
        l1_mb=32,
        l2={
            "type": "mock",
            "max_size_gb": 64 / 1024,
            "mock_bandwidth_gb": 1.0,
            "eviction": {"eviction_policy": "IsolatedLRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
        quotas_mb={"kept": 16},
    ),
    traffic=_log,
    expected=Expected(
        symptoms=frozenset({SymptomCode.TENANT_WITHOUT_QUOTA}),
        action=Action.OPERATOR,
        told="no quota on this server: 'forgotten'",
    ),
)
