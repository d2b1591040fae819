"""An engine of eight ranks looks up and does not store: in chunks that is plain, in objects it would be hidden."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.schedule import ReplayedModel
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, all_new, mixed


def _log() -> AccessLog:
    """New prompts of four chunks, all of which the engine stores."""
    return mixed(100, (all_new(Documents(), 4), 1))


INCIDENT = Incident(
    name="under_stored_by_eight_ranks",
    story="of two engines with tensor parallel 8, the one with most requests was started as a consumer and stores nothing",
    stage=Server(l1_mb=32, engines={"replay": ReplayedModel(world_size=8)}),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    provoke=lambda stage: stage.look_up_only("replay", world_size=8, lookups=80, new=True),
    expected=Expected(symptoms=frozenset({SymptomCode.UNDER_STORED}), action=Action.OPERATOR, told="kv_role"),
)
