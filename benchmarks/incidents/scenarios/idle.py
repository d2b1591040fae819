"""Nobody asks: there is nothing to say, and nothing to do."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server

INCIDENT = Incident(
    name="idle",
    story="nobody asks for anything",
    stage=Server(l1_mb=16),
    bounds=Bounds(max_size_mb=64),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NO_DATA}), action=Action.NOTHING),
)
