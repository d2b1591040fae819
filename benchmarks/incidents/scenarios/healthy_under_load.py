"""Four engines at once, as fast as a paced replay goes, into a cache that is right: keep off."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="healthy_under_load",
    story="four engines ask as much as two cores can serve, and L1 holds all they come back to",
    stage=Server(l1_mb=64),
    traffic=lambda: agents(1800),
    clients=4,
    bounds=Bounds(max_size_mb=96),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
