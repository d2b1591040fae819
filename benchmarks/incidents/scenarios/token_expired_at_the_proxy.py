"""The proxy takes the token no longer: that is the proxy's answer, and says nothing about the cache."""

from agent_tools.models import Bounds
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="token_expired_at_the_proxy",
    story="the proxy in front of a server whose L1 is too small answers 401, since the token has expired",
    stage=Server(l1_mb=8, behind_a_proxy=True),
    traffic=agents,
    bounds=Bounds(max_size_mb=64),
    provoke=lambda stage: stage.refuse(),
    expected=Expected(symptoms=frozenset(), action=Action.OPERATOR, told="the proxy in front of"),
)
