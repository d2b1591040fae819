"""L1 holds less than the engine's own cache: nearly all of its hits are there already. Grow it, the operator allows more."""

from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Vllm

CHATS = ChatTraffic(conversations=10, turns=4)
"""23,320 distinct tokens, 23 MB of KV."""

INCIDENT = Incident(
    name="l1_smaller_than_l0",
    story="vLLM's own prefix cache holds two fifths of what its agents come back to, and L1 holds less than that",
    stage=Vllm(l1_mb=8, own_cache_tokens=2 * CHATS.tokens // 5, chats=CHATS),
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_SMALLER_THAN_ENGINE_CACHE}),
        action=Action.CHANGE,
        settings=frozenset({"max_size_mb"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        gain=0.03,
    ),
)
