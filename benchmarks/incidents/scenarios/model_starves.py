"""A model with large chunks finds nothing again beside one with small ones: growth helps it."""

from dataclasses import replace

import numpy as np

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.schedule import ReplayedModel
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents


def two_models() -> AccessLog:
    """Agents' requests, of which one in eight is of the big model."""
    log = agents(400, conversations=12)
    models = (np.random.default_rng(1).random(len(log)) > 0.125).astype(np.int16)
    return replace(log, models=models, model_names=("big", "small"), tenants=np.zeros(len(log), np.int16), tenant_names=("",))


ENGINES = {
    "big": ReplayedModel(world_size=8, kv_bytes_per_token=1024),
    "small": ReplayedModel(world_size=1, kv_bytes_per_token=32),
}
"""256 KiB a chunk on eight ranks, and 8 KiB on one."""

INCIDENT = Incident(
    name="model_starves",
    story="two models share L1, and the chunks of one are 32 times as large: it finds nearly nothing again",
    stage=Server(l1_mb=16, engines=ENGINES),
    traffic=two_models,
    bounds=Bounds(max_size_mb=96),
    expected=Expected(
        symptoms=frozenset({SymptomCode.MODEL_STARVES}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        never=frozenset({SymptomCode.UNDER_STORED}),
    ),
)
