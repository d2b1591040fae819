"""Two equal workers of one engine whose L1 holds what they serve: keep off."""

from agent_tools.models import SymptomCode
from benchmarks.incidents.incident import Action, Engines, Expected, Incident

INCIDENT = Incident(
    name="healthy_engine",
    story="two equal workers of one engine serve prompts that their L1 holds",
    stage=Engines(configs=[{}, {}], prompts=[(seed, 8) for seed in range(6)]),
    healthy=True,
    expected=Expected(symptoms=frozenset({SymptomCode.NOTHING_WRONG}), action=Action.NOTHING),
)
