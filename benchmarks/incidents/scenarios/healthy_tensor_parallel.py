"""World sizes 8 and 1 of one model on one server share nothing, and L1 holds both: keep off."""

from dataclasses import replace

import numpy as np

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.schedule import ReplayedModel
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents


def _log() -> AccessLog:
    """Agents' requests, every other one to the engine with eight ranks."""
    log = agents(300, conversations=20)
    models = (np.arange(len(log)) % 2).astype(np.int16)
    return replace(log, models=models, model_names=("one", "eight"), tenants=np.zeros(len(log), np.int16), tenant_names=("",))


INCIDENT = Incident(
    name="healthy_tensor_parallel",
    story="one model is served by an engine of world size 1 and one of world size 8, and L1 holds what both come back to",
    stage=Server(
        l1_mb=64,
        engines={
            "one": ReplayedModel(world_size=1, name="toy/m"),
            "eight": ReplayedModel(world_size=8, name="toy/m"),
        },
    ),
    traffic=_log,
    bounds=Bounds(max_size_mb=96),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
