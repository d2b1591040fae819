"""A plain server without any log: nothing says whether its evictions cost hits, so nothing is to be done by guess."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="counters_only",
    story="a plain server evicts, and there is no log to tell whether that costs hits",
    stage=Server(l1_mb=8, module=False, log=False, flags={"--metrics-sample-rate": 0.01}),
    traffic=agents,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(symptoms=frozenset({SymptomCode.EVICTS_UNJUDGED}), action=Action.OPERATOR, told="--lookup-hash-log-dir"),
)
