"""Stores stop just below the watermark, so nothing is ever evicted: lower the watermark; memory is no cure."""

from agent_tools.models import SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed


def _log() -> AccessLog:
    """20 chunks a prompt into 256: twelve prompts fill 94 %, the next does not fit, and the watermark is 95 %."""
    return mixed(600, (in_turn(Documents(), at_once=6, times=6, chunks=20), 1))


INCIDENT = Incident(
    name="watermark_freezes",
    story="stores fail just below a watermark of 95 %, so that L1 keeps what it got first for good",
    stage=Server(l1_mb=8, flags={"--eviction-trigger-watermark": 0.95}),
    traffic=_log,
    expected=Expected(
        symptoms=frozenset({SymptomCode.WATERMARK_TOO_HIGH}),
        action=Action.CHANGE,
        settings=frozenset({"eviction_watermark"}),
        may=frozenset({"eviction_ratio"}),
        gain=0.3,
    ),
)
