"""Everything that can be hit is hit, though L1 is full and evicts: more memory would bring nothing."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed

INCIDENT = Incident(
    name="at_the_ceiling",
    story="L1 is full and evicts all the time, and nothing that it evicts is asked for again",
    stage=Server(l1_mb=16),
    traffic=lambda: mixed(800, (in_turn(Documents(), at_once=4, times=5, chunks=20), 1)),
    bounds=Bounds(max_size_mb=64),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
