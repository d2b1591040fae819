"""One of four workers stores nothing: every chunk lacks a part, and no request can hit any."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.schedule import ReplayedModel
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """20 prompts of 10 chunks in turn: all of them stay."""
    documents = Documents()
    return mixed(300, (over_and_over([documents.new(10) for _ in range(20)]), 1))


INCIDENT = Incident(
    name="a_rank_stores_nothing",
    story="one of four workers of an engine stores nothing: L1 has three quarters of every chunk, and nothing is hit",
    stage=Server(l1_mb=32, engines={"replay": ReplayedModel(world_size=4)}, silent_ranks=1),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.CHUNKS_INCOMPLETE}),
        action=Action.OPERATOR,
        told="read its log",
        never=frozenset({SymptomCode.NOTHING_TO_REUSE, SymptomCode.L1_TOO_SMALL, SymptomCode.UNDER_STORED}),
    ),
    remark="that under_stored must not be named was added after a run in which it was, and sent people to the connector's role.",
)
