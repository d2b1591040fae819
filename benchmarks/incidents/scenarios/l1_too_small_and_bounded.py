"""The same, and the operator lets nobody make L1 larger: say so, and keep off."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="l1_too_small_and_bounded",
    story="L1 holds a quarter of what its agents come back to, and the operator's bounds let nothing grow",
    stage=Server(l1_mb=8),
    traffic=agents,
    bounds=Bounds(min_watermark=0.8, max_watermark=0.8, min_ratio=0.2, max_ratio=0.2),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_TOO_SMALL}),
        action=Action.OPERATOR,
        told="The operator's bounds forbid",
    ),
)
