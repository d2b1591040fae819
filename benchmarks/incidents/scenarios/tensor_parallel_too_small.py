"""Eight ranks make eight objects of every chunk: L1 is too small, and nothing is under-stored."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.schedule import ReplayedModel
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="tensor_parallel_too_small",
    story="an engine with tensor parallel 8 comes back to many times what L1 holds",
    stage=Server(l1_mb=4, engines={"replay": ReplayedModel(world_size=8)}),
    traffic=lambda: agents(350),
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_TOO_SMALL}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        never=frozenset({SymptomCode.UNDER_STORED}),
        gain=0.05,
    ),
    remark="with 8 MB this traffic lost only 4 points to eviction, too little to grow for; 4 MB are too small. That"
    " chunks_incomplete must not be named was wrong: at 4 MB stores fail for some ranks, and 31 of 124 chunks lacked parts.",
)
