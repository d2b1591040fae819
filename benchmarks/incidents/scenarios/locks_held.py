"""A client that died between lookup and retrieve holds a large part of L1: find the client."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """30 prompts of 10 chunks in turn: 300 of 1,024 chunks, so that all of them stay."""
    documents = Documents()
    return mixed(700, (over_and_over([documents.new(10) for _ in range(30)]), 1))


INCIDENT = Incident(
    name="locks_held",
    story="an engine looked up twenty prompts and hangs: two thirds of what is in L1 is locked and cannot be evicted",
    stage=Server(l1_mb=32),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    provoke=lambda stage: stage.hold_locks(20),
    expected=Expected(
        symptoms=frozenset({SymptomCode.LOCKS_HELD}), action=Action.OPERATOR, told="look for engines that died or hang"
    ),
)
