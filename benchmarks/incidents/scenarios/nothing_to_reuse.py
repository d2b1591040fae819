"""No prefix comes twice: a bigger cache would be wasted money."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, all_new, mixed

INCIDENT = Incident(
    name="nothing_to_reuse",
    story="a batch job whose prompts share nothing fills and empties L1",
    stage=Server(l1_mb=16),
    traffic=lambda: mixed(520, (all_new(Documents(), 6), 1)),
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.NOTHING_TO_REUSE}),
        action=Action.NOTHING,
        never=frozenset({SymptomCode.L1_TOO_SMALL, SymptomCode.UNDER_STORED}),
    ),
)
