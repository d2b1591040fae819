"""A prompt has to go at world size 2 with an L2 behind L1: it is gone when a lookup no longer finds it."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.schedule import ReplayedModel
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """One prompt of ten chunks that comes once, then 20 others in turn."""
    documents = Documents()
    once = documents.new(10)
    return mixed(300, (over_and_over([documents.new(10) for _ in range(20)]), 1), first=[once])


INCIDENT = Incident(
    name="prefix_deleted_on_two_ranks",
    story="a customer's prompt has to be deleted from an L1 and an L2 that hold it in two parts",
    stage=Server(
        l1_mb=32,
        engines={"replay": ReplayedModel(world_size=2)},
        l2={"type": "fs", "base_path": "FOLDER"},
    ),
    traffic=_log,
    bounds=Bounds(),
    by="delete",
    expected=Expected(
        symptoms=frozenset(),
        action=Action.OPERATOR,
        told="10 chunks of the prefix were deleted; a lookup no longer finds it, in any tier",
        never=frozenset({SymptomCode.L1_TOO_SMALL}),
    ),
)
