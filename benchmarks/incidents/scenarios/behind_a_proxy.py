"""Behind a proxy with a path prefix and a token, a server is tuned like any other."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="behind_a_proxy",
    story="L1 is too small, on a server that is reached under a path prefix with a token",
    stage=Server(l1_mb=8, behind_a_proxy=True),
    traffic=agents,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_TOO_SMALL}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        gain=0.05,
    ),
)
