"""The same before L1 is full: all looks well, and an operator wants to know before the night."""

from agent_tools.models import SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="isolated_lru_not_yet_dead",
    story="L1 was started with IsolatedLRU and is not full yet: its eviction thread will die of it",
    stage=Server(l1_mb=512, flags={"--eviction-policy": "IsolatedLRU"}, module=False),
    traffic=agents,
    expected=Expected(
        symptoms=frozenset({SymptomCode.ISOLATED_LRU_ON_L1}),
        action=Action.OPERATOR,
        told="restart the server with policy LRU",
        never=frozenset({SymptomCode.EVICTION_DEAD}),
    ),
)
