"""A hybrid model stores two objects a chunk: L1 holds half of what one group would say."""

from dataclasses import replace

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.schedule import ReplayedModel
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents


def _log() -> AccessLog:
    """Agents' requests to a hybrid model."""
    return replace(agents(700), model_names=("hybrid",))


INCIDENT = Incident(
    name="two_object_groups_too_small",
    story="a model with full and sliding-window attention comes back to four times what L1 holds",
    stage=Server(l1_mb=16, two_groups=True, engines={"hybrid": ReplayedModel(retrieves=False)}),
    traffic=_log,
    bounds=Bounds(max_size_mb=96),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_TOO_SMALL}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        never=frozenset({SymptomCode.UNDER_STORED}),
        gain=0.05,
    ),
    remark="an engine without a GPU has one object group; `benchmarks.hybrid_module` registers and stores a second one. With 500"
    " requests instead of 700, L1 was full only at the end of the observed window, and the hit rate rose by 3 points. That"
    " chunks_incomplete must not be named was wrong: with 700, 162 of 333 chunks lacked one group's part, since L1 had no room.",
)
