"""The server came back with an empty L1: the figures are bad, and will be good again by themselves."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="restarted_with_cold_l1",
    story="the server was restarted a moment ago, and L1 is cold",
    stage=Server(l1_mb=64),
    traffic=lambda: agents(400),
    bounds=Bounds(max_size_mb=96),
    provoke=lambda stage: stage.restart(),
    expected=Expected(
        symptoms=frozenset({SymptomCode.RESTARTED}),
        action=Action.NOTHING,
        never=frozenset({SymptomCode.L1_TOO_SMALL, SymptomCode.NOTHING_TO_REUSE, SymptomCode.UNDER_STORED}),
    ),
)
