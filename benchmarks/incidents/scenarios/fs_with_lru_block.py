"""An fs adapter with an LRU block, which LMCache 0.5.6 skips with a warning: it never evicts."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed

INCIDENT = Incident(
    name="fs_with_lru_block",
    story="L2 on a file system was given an LRU block, which LMCache skips: it will fill its disk",
    stage=Server(
        l1_mb=32,
        l2={
            "type": "fs",
            "base_path": "FOLDER",
            "eviction": {"eviction_policy": "LRU", "trigger_watermark": 0.8, "eviction_ratio": 0.2},
        },
    ),
    traffic=lambda: mixed(600, (in_turn(Documents(), at_once=4, times=8, chunks=12), 1)),
    bounds=Bounds(max_size_mb=64, max_l2_size_mb=1024),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L2_UNBOUNDED}), action=Action.OPERATOR, told="ignores every eviction block"
    ),
)
