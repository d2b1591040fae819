"""LMCache's sample of a young server holds only chunks that were needed again: it says nothing yet."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="young_sample",
    story="a plain server that started a minute ago evicts; all that its sample shows is what came back",
    stage=Server(l1_mb=8, module=False, log=False, flags={"--metrics-sample-rate": 1.0}),
    traffic=agents,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.EVICTS_UNJUDGED}),
        action=Action.OPERATOR,
        told="--lookup-hash-log-dir",
        never=frozenset({SymptomCode.L1_TOO_SMALL}),
    ),
)
