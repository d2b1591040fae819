"""New prompts are larger than what the watermark leaves free: make room earlier, or more of it at a time."""

from agent_tools.models import SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed


def _log() -> AccessLog:
    """150 chunks a document into an L1 of 512, of which eviction leaves 102 to 184 free; chats keep it evicting."""
    documents = Documents()
    large = in_turn(documents, at_once=2, times=5, chunks=150)
    return mixed(480, (large, 1), (in_turn(documents, at_once=6, times=3, chunks=8), 3))


INCIDENT = Incident(
    name="stores_larger_than_headroom",
    story="documents larger than the space above the watermark are dropped, and their engines are told all is well",
    stage=Server(l1_mb=16),
    traffic=_log,
    expected=Expected(
        symptoms=frozenset({SymptomCode.STORES_FAIL}),
        action=Action.CHANGE,
        settings=frozenset({"eviction_watermark", "eviction_ratio"}),
        never=frozenset({SymptomCode.REQUEST_LARGER_THAN_L1}),
    ),
)
