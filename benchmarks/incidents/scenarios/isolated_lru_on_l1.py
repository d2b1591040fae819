"""LMCache 0.5.6 takes IsolatedLRU for L1 and its eviction thread dies of it: only a restart with LRU helps."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="isolated_lru_on_l1",
    story="L1 was started with IsolatedLRU; its eviction thread died when L1 was full, and nothing new is stored",
    stage=Server(l1_mb=8, flags={"--eviction-policy": "IsolatedLRU"}, module=False),
    traffic=agents,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.EVICTION_DEAD, SymptomCode.ISOLATED_LRU_ON_L1}),
        action=Action.OPERATOR,
        told="restart the server with",
    ),
)
