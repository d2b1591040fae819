"""Prompts shorter than a chunk are never cached, whatever the memory: smaller chunks, which takes a restart."""

from agent_tools.models import Bounds, SymptomCode
from agent_tools.workload.access_log import AccessLog
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, all_new, mixed, over_and_over


def _log() -> AccessLog:
    """Three of four prompts have 150 tokens, the others 8 chunks more."""
    documents = Documents()
    return mixed(800, (over_and_over([range(0)]), 3), (all_new(documents, 8), 1), tail=150)


INCIDENT = Incident(
    name="short_prompts",
    story="three of four prompts are shorter than one chunk of 256 tokens",
    stage=Server(l1_mb=16),
    traffic=_log,
    bounds=Bounds(max_size_mb=64),
    expected=Expected(symptoms=frozenset({SymptomCode.SHORT_PROMPTS}), action=Action.OPERATOR, told="use smaller chunks"),
)
