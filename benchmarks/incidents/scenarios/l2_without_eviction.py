"""A capacity without an eviction block is a number in an account: the disk fills all the same."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed

INCIDENT = Incident(
    name="l2_without_eviction",
    story="L2 declares a capacity and has no eviction block: it will fill its disk",
    stage=Server(l1_mb=32, l2={"type": "fs_native", "base_path": "FOLDER", "max_capacity_gb": 0.25}),
    traffic=lambda: mixed(600, (in_turn(Documents(), at_once=4, times=8, chunks=12), 1)),
    bounds=Bounds(max_size_mb=64, max_l2_size_mb=1024),
    expected=Expected(
        symptoms=frozenset({SymptomCode.L2_UNBOUNDED}), action=Action.OPERATOR, told="set a capacity and an eviction block"
    ),
)
