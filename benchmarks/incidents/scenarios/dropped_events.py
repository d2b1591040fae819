"""LMCache dropped events before it counted them: no figure is to be trusted, so nothing is to be done by them."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="dropped_events",
    story="LMCache's event queue is too short, and its counters miss what it drops",
    stage=Server(l1_mb=16, flags={"--event-bus-queue-size": 2}),
    traffic=agents,
    clients=4,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        never=frozenset({SymptomCode.NOTHING_TO_REUSE}),
        symptoms=frozenset({SymptomCode.COUNTERS_INCOMPLETE}),
        action=Action.OPERATOR,
        told="all its counters are too low",
    ),
    remark="that nothing_to_reuse must not be named was added after a run in which it was, on a log with gaps.",
)
