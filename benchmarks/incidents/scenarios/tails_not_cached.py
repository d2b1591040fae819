"""Most of each prompt lies in its last, started chunk: smaller chunks would cache it."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed


def _log() -> AccessLog:
    """One chunk and 200 tokens a prompt, each asked for six times."""
    return mixed(1000, (in_turn(Documents(), at_once=10, times=6, chunks=1), 1), tail=200)


INCIDENT = Incident(
    name="tails_not_cached",
    story="prompts of 456 tokens in chunks of 256: 44 % of them is never cached",
    stage=Server(l1_mb=16),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.TAILS_NOT_CACHED}), action=Action.OPERATOR, told="a smaller chunk size would cache more"
    ),
)
