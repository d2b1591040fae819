"""A plain server with a readable log and enough memory: keep off, and propose no restart."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="healthy_plain_server",
    story="a plain server, read by its lookup-hash log, whose L1 holds all that comes back",
    stage=Server(l1_mb=64, module=False),
    traffic=agents,
    bounds=Bounds(max_size_mb=128, allow_restart=True),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
