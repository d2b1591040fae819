"""A server of LMCache 0.4.7 that evicts, without a log: what is advised must work on that version."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Oldest

INCIDENT = Incident(
    name="oldest_server_evicts",
    story="a server of LMCache 0.4.7 evicts, and there is no log to tell whether that costs hits",
    stage=Oldest(l1_mb=4, log=False),
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.EVICTS_UNJUDGED}),
        action=Action.OPERATOR,
        told="start it with --lookup-hash-log-dir",
        never=frozenset({SymptomCode.NO_DATA, SymptomCode.NOTHING_TO_REUSE}),
    ),
)
