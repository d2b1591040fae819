"""The state of `tune_fleet`: its settings, its channels as plain JSON, and the typed views through which nodes read them."""

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from agent_tools.models import Advice, Bounds, CacheConfig, ChangeResult, ConfigUpdate, Mode, Plan, Verification
from agent_tools.models.change import Baseline
from agent_tools.models.config import Frozen

APPROVE = "lmcache_roll_out"
"""Name under which approval interfaces show the changes."""


class FleetContext(BaseModel):
    """Settings of one run of `tune_fleet`."""

    model_config = ConfigDict(
        hide_input_in_errors=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        title="Settings of a fleet's tuning run",
    )

    caches: Annotated[tuple[str, ...], Field(title="Caches", min_length=1, examples=[["prod-fleet"]])] = ("default",)
    """Names in caches.toml. A fleet stands for all servers that its coordinator knows."""
    mode: Annotated[Mode, Field(title="Mode")] = Mode.APPROVE
    """observe: only read; recommend: also recommend changes; approve: act after a person approves; auto: act within bounds."""
    window_seconds: Annotated[float, Field(ge=0, title="Window (seconds)", examples=[30, 300])] = 30.0
    """Seconds to observe each server. 0 uses all data since each cache process started."""
    verify_seconds: Annotated[float, Field(gt=0, title="Patience for verification (seconds)", examples=[120, 600])] = 120.0
    """Longest time, in seconds, to wait after each change until the cache has seen as much traffic as before the change."""
    batch_size: Annotated[int, Field(ge=1, title="Batch size", examples=[4])] = 4
    """Servers of a group to change and verify at once, after the group's canary improved."""
    bounds: Annotated[Bounds | None, Field(title="Bounds")] = None
    """Bounds for this run. They can only narrow the operator's bounds."""


class Reading(Frozen):
    """One server's baseline and configuration."""

    baseline: Baseline
    config: CacheConfig


class Group(Frozen):
    """Servers with the same configuration and workload, and the advice for them."""

    servers: tuple[str, ...]
    """Names of the servers. The first is the canary, the server with the most traffic."""
    advice: Advice
    """Advice for the canary. The other servers get the same advice, because they are similar."""

    @property
    def update(self) -> ConfigUpdate | None:
        """Return the recommended settings, or ``None`` if nothing should change."""
        return self.advice.best.update if self.advice.best is not None else None


class ServerOutcome(str, Enum):
    """The outcome of the run for one server."""

    IMPROVED = "improved"
    """The server was changed, and the verification shows that the change helped."""
    KEPT_UNDECIDED = "kept_undecided"
    """The server was changed, and the change is kept. The verification could not show whether it helped."""
    ROLLED_BACK = "rolled_back"
    """The server was changed, the change made the cache worse, and it was undone."""
    NOT_REACHED = "not_reached"
    """The roll-out in the server's group stopped before it reached this server."""
    NEEDS_OPERATOR = "needs_operator"
    """Only the operator can make the change. The plan holds the command line."""
    FAILED = "failed"
    """An error ended the change. The message says what is known."""


class Step(Frozen):
    """The progress of the roll-out on one server."""

    plan: Plan | None = None
    change: ChangeResult | None = None
    verification: Verification | None = None
    undo: ChangeResult | None = None
    outcome: ServerOutcome | None = None
    """``None`` while the change is in progress."""
    summary: str = ""
    """The outcome in one sentence."""


class FleetReport(Frozen):
    """The report of a run of `tune_fleet`."""

    caches: tuple[str, ...]
    mode: Mode
    summary: str
    """The result in one or two sentences."""
    groups: tuple[Group, ...] = ()
    servers: dict[str, Step] = {}
    """The outcome for each server that the run meant to change, by name."""
    left_out: dict[str, str] = {}
    """The reason for each server or fleet that could not be read, by name."""


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge two dicts by server name. This is the reducer for channels that several servers write at once."""
    return {**(old or {}), **(new or {})}


class FleetInput(TypedDict, total=False):
    """The input of a run. All keys are optional."""

    fleet_reason: Annotated[str, Field(title="Reason", description="Why you start this run. The change log records it.")]


class FleetOutput(TypedDict, total=False):
    """The output of a run."""

    fleet_report: Annotated[dict[str, Any], Field(title="Report", description="A FleetReport as plain JSON.")]


class FleetState(FleetInput, FleetOutput, total=False):
    """All channels. Channels that are not input or output are private to the subgraph."""

    fleet_readings: Annotated[dict[str, Any], merged]
    fleet_failures: Annotated[dict[str, Any], merged]
    fleet_groups: list[dict[str, Any]]
    fleet_steps: Annotated[dict[str, Any], merged]
    fleet_approved: bool
    fleet_stop: str


class ServerView(BaseModel):
    """View of a node that works on one server."""

    server: str
    fleet_reason: str = ""
    reading: Reading | None = None
    update: ConfigUpdate | None = None
    approved: bool = False
    """Whether a person was asked and approved."""
    step: Step = Step()


class FleetView(BaseModel):
    """View of a node that sees all servers."""

    fleet_reason: str = ""
    fleet_readings: dict[str, Reading] = {}
    fleet_failures: dict[str, dict[str, str]] = {}
    fleet_groups: list[Group] = []
    fleet_steps: dict[str, Step] = {}
    fleet_approved: bool = False
    fleet_stop: str | None = None


class FleetDecision(BaseModel):
    """A person's decision on all changes in the request."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="forbid", use_attribute_docstrings=True)

    type: Annotated[Literal["approve", "reject"], Field(title="Decision")]
    """approve: roll out all changes in the request; reject: change nothing."""
    message: Annotated[str | None, Field(title="Reason")] = None
    """The reason for a rejection."""


class FleetApproval(BaseModel):
    """The answer to the approval interrupt. It holds exactly one decision."""

    model_config = ConfigDict(
        hide_input_in_errors=True, extra="forbid", use_attribute_docstrings=True, title="Approval of a roll-out"
    )

    decisions: Annotated[list[FleetDecision], Field(title="Decision", min_length=1, max_length=1)]
    """One decision on all changes in the request."""
    fingerprint: Annotated[str | None, Field(title="Fingerprint")] = None
    """The fingerprint in the request. If given, it must match the changes in the request."""
