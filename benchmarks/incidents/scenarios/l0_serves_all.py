"""The engine's own cache holds all that comes again: LMCache saves nothing, and a larger L1 would not either."""

from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Vllm

CHATS = ChatTraffic(conversations=10, turns=4, system_words=260, document_words=600)
"""11,060 distinct tokens, 11 MB of KV."""

INCIDENT = Incident(
    name="l0_serves_all",
    story="vLLM's own prefix cache holds all that its agents come back to, and an L1 of a third of it looks too small",
    stage=Vllm(l1_mb=4, own_cache_tokens=3 * CHATS.tokens // 2, chats=CHATS),
    bounds=Bounds(max_size_mb=32),
    expected=Expected(
        symptoms=frozenset({SymptomCode.LMCACHE_SAVES_NOTHING}),
        action=Action.OPERATOR,
        told="LMCache saves nothing here",
        never=frozenset({SymptomCode.L1_TOO_SMALL, SymptomCode.NOTHING_WRONG}),
    ),
)
