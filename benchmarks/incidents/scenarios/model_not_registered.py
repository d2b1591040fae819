"""Engines ask for a model that nobody registered: every request is computed, and no setting helps."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """20 prompts of 10 chunks in turn: all of them stay."""
    documents = Documents()
    return mixed(500, (over_and_over([documents.new(10) for _ in range(20)]), 1))


INCIDENT = Incident(
    name="model_not_registered",
    story="one engine lost its registration: all its lookups end at once, beside another model that is served well",
    stage=Server(l1_mb=16),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    provoke=lambda stage: stage.look_up_only("other/model"),
    expected=Expected(symptoms=frozenset({SymptomCode.MODEL_NOT_REGISTERED}), action=Action.OPERATOR, told="restart the engine"),
)
