"""The engine loads over another connector: its figures are not this cache's, and say nothing about it."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed, over_and_over


def _log() -> AccessLog:
    """20 prompts of 10 chunks in turn: all of them stay."""
    documents = Documents()
    return mixed(300, (over_and_over([documents.new(10) for _ in range(20)]), 1))


INCIDENT = Incident(
    name="decoder_with_another_connector",
    story="the decoder of a prefill-decode pair loads nearly all its prompts over another connector",
    stage=Server(l1_mb=16, loaded_elsewhere=100_000),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.ENGINE_FIGURES_DO_NOT_FIT}),
        action=Action.OPERATOR,
        told="another connector",
        never=frozenset({SymptomCode.LMCACHE_SAVES_NOTHING, SymptomCode.ENGINE_CACHE_SERVES, SymptomCode.UNDER_STORED}),
    ),
    remark="the engine's page is a recorded one whose counters grow, since two connectors need GPUs; the server is real.",
)
