"""A full L1 without eviction keeps what it got first: an eviction policy is free, and live."""

from agent_tools.models import SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, in_turn, mixed


def _log() -> AccessLog:
    """Six prompts of 20 chunks at once, each asked for six times, then six others: L1 has room for twelve."""
    return mixed(600, (in_turn(Documents(), at_once=6, times=6, chunks=20), 1))


INCIDENT = Incident(
    name="never_evicts",
    story="L1 has policy noop and no L2: it holds the first prompts for good and drops all others",
    stage=Server(l1_mb=8, flags={"--eviction-policy": "noop"}),
    traffic=_log,
    expected=Expected(
        symptoms=frozenset({SymptomCode.L1_NEVER_EVICTS}),
        action=Action.CHANGE,
        settings=frozenset({"eviction_policy"}),
        may=frozenset({"eviction_watermark", "eviction_ratio"}),
        never=frozenset({SymptomCode.WATERMARK_TOO_HIGH}),
        gain=0.3,
    ),
)
