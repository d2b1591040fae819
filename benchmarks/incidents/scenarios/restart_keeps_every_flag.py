"""Only a restart makes L1 of a plain server larger: the command has every flag that the server was started with."""

from agent_tools.models import Bounds, SymptomCode
from benchmarks.incidents.incident import Action, Expected, Incident, Server
from benchmarks.incidents.traffic import agents

INCIDENT = Incident(
    name="restart_keeps_every_flag",
    story="a plain server with flags of its own has too small an L1, and only its operator can restart it",
    stage=Server(
        l1_mb=8,
        module=False,
        flags={"--l1-read-ttl-seconds": 77, "--max-workers": 3, "--eviction-ratio": 0.25, "--l1-align-bytes": 4096},
    ),
    traffic=agents,
    bounds=Bounds(max_size_mb=64, allow_restart=True),
    expected=Expected(symptoms=frozenset({SymptomCode.L1_TOO_SMALL}), action=Action.OPERATOR, told="--l1-read-ttl-seconds 77"),
)
