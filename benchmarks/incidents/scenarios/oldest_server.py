"""A server of LMCache 0.4.7: its figures are read by their older names, and nothing can be changed live."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Oldest

INCIDENT = Incident(
    name="oldest_server",
    story="a server of LMCache 0.4.7, which nobody may restart, holds what is asked for again",
    stage=Oldest(l1_mb=64),
    bounds=Bounds(max_size_mb=64),
    healthy=True,
    expected=Expected(
        symptoms=frozenset({SymptomCode.NOTHING_WRONG}),
        action=Action.NOTHING,
        never=frozenset({SymptomCode.NO_DATA, SymptomCode.NOTHING_TO_REUSE}),
    ),
)
