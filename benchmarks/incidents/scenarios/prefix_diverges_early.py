"""A timestamp in front makes every prompt new: the clients' template is to blame, and no memory helps."""

from collections.abc import Iterator

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import Documents, mixed


def _prompts() -> Iterator[list[int]]:
    """Twelve chunks each, the first one shared, and all after the timestamp new."""
    documents = Documents()
    head = list(documents.new(1))
    while True:
        yield [*head, *documents.new(11)]


INCIDENT = Incident(
    name="prefix_diverges_early",
    story="a request id after the first sentence of the system prompt makes each prompt new",
    stage=Server(l1_mb=16),
    traffic=lambda: mixed(300, (_prompts(), 1)),
    bounds=Bounds(max_size_mb=64),
    expected=Expected(
        symptoms=frozenset({SymptomCode.PREFIX_DIVERGES_EARLY}),
        action=Action.OPERATOR,
        told="move it to the end",
        never=frozenset({SymptomCode.L1_TOO_SMALL}),
    ),
)
