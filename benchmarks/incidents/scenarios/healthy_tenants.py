"""Four tenants share an L1 that is large enough for all: keep off."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="healthy_tenants",
    story="four tenants with conversations of their own share an L1 that holds them all",
    stage=Server(l1_mb=64),
    traffic=lambda: agents(conversations=24, tenants=4, seed=3),
    bounds=Bounds(max_size_mb=96, max_quotas_mb=64),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
