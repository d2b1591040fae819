"""Stores are put off until the engine is about to evict: with a large L0 hardly any chunk ever reaches LMCache."""

from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Vllm

CHATS = ChatTraffic(conversations=10, turns=4, system_words=260, document_words=600)
"""11,060 distinct tokens, 11 MB of KV."""

INCIDENT = Incident(
    name="lazy_offload",
    story="lmcache.mp.lazy_offload is on, so chunks that are asked for again have not been stored yet",
    stage=Vllm(l1_mb=16, own_cache_tokens=8 * CHATS.tokens, chats=CHATS, connector={"lmcache.mp.lazy_offload": True}),
    bounds=Bounds(max_size_mb=32),
    expected=Expected(
        symptoms=frozenset({SymptomCode.UNDER_STORED}),
        action=Action.OPERATOR,
        told="lmcache.mp.lazy_offload",
        never=frozenset({SymptomCode.L1_TOO_SMALL, SymptomCode.NOTHING_TO_REUSE}),
    ),
)
