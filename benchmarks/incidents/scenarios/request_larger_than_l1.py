"""A prompt that does not fit into an empty L1 is never stored: L1 has to be larger than it."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed, over_and_over


def _log() -> AccessLog:
    """300 chunks a document into an L1 of 256, and chats."""
    documents = Documents()
    large = over_and_over([documents.new(300), documents.new(300)])
    return mixed(360, (large, 1), (in_turn(documents, at_once=5, times=4, chunks=6), 4))


INCIDENT = Incident(
    name="request_larger_than_l1",
    story="two documents that everybody asks about are larger than all of L1",
    stage=Server(l1_mb=8),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.REQUEST_LARGER_THAN_L1}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        gain=0.3,
    ),
)
