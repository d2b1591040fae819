"""L1 holds a quarter of what comes again: grow it, the operator allows four times as much."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="l1_too_small",
    story="L1 holds a quarter of what its agents come back to",
    stage=Server(l1_mb=8),
    traffic=agents,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_TOO_SMALL}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        gain=0.03,
    ),
)
