"""What flows through `tune_fleet`: its settings, its channels as plain JSON, and the views through which nodes read them."""

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
    """How one run of `tune_fleet` goes about it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, title="Settings of a fleet's tuning run"
    )

    caches: Annotated[tuple[str, ...], Field(title="Caches", min_length=1, examples=[["prod-fleet"]])] = ("default",)
    """Names in the operator's directory; a fleet among them stands for all servers that its coordinator knows."""
    mode: Annotated[Mode, Field(title="Mode")] = Mode.APPROVE
    """observe: only read; recommend: also say what would help; approve: act once a person approved; auto: act within bounds."""
    window_seconds: Annotated[float, Field(ge=0, title="Window (seconds)", examples=[30, 300])] = 30.0
    """How long to observe before judging; 0 takes everything since each cache process started."""
    verify_seconds: Annotated[float, Field(gt=0, title="Patience for verification (seconds)", examples=[120, 600])] = 120.0
    """How long to wait at most, after each step of the roll-out, for as much traffic as was observed before it."""
    batch_size: Annotated[int, Field(ge=1, title="Batch size", examples=[4])] = 4
    """How many servers of a group are changed and verified at once, after its canary was seen to be better."""
    bounds: Annotated[Bounds | None, Field(title="Bounds")] = None
    """Narrows the operator's bounds for this run; never widens them."""


class Reading(Frozen):
    """What was read of one server."""

    baseline: Baseline
    config: CacheConfig


class Group(Frozen):
    """Servers whose configuration and workload agree, and what would help them."""

    servers: tuple[str, ...]
    """The first one is the canary: the server with most traffic."""
    advice: Advice
    """For the canary, and for the others by likeness."""

    @property
    def update(self) -> ConfigUpdate | None:
        """The settings that would help; ``None`` when nothing is to be changed."""
        return self.advice.best.update if self.advice.best is not None else None


class ServerOutcome(str, Enum):
    """How the run ended for one server."""

    IMPROVED = "improved"
    """Changed, and verified to help."""
    KEPT_UNDECIDED = "kept_undecided"
    """Changed and kept; whether it helped could not be told."""
    ROLLED_BACK = "rolled_back"
    """Changed, seen to harm, and undone."""
    NOT_REACHED = "not_reached"
    """The roll-out in its group stopped before it."""
    NEEDS_OPERATOR = "needs_operator"
    """Only its operator can do it: the plan holds the command line."""
    FAILED = "failed"
    """An error ended it; the message says what is known."""


class Step(Frozen):
    """How far the roll-out has come on one server."""

    plan: Plan | None = None
    change: ChangeResult | None = None
    verification: Verification | None = None
    undo: ChangeResult | None = None
    outcome: ServerOutcome | None = None
    """``None`` while it goes on."""
    summary: str = ""
    """One sentence."""


class FleetReport(Frozen):
    """What a run of `tune_fleet` did and found."""

    caches: tuple[str, ...]
    mode: Mode
    summary: str
    """One or two sentences."""
    groups: tuple[Group, ...] = ()
    servers: dict[str, Step] = {}
    """What became of each server that was to be changed."""
    left_out: dict[str, str] = {}
    """Servers that could not be read, and why."""


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Reducer: what several servers write at once, by name."""
    return {**(old or {}), **(new or {})}


class FleetInput(TypedDict, total=False):
    """What starts a run; all of it optional."""

    fleet_reason: Annotated[str, Field(title="Reason", description="Why tuning is asked for; goes into the change log.")]


class FleetOutput(TypedDict, total=False):
    """What a run leaves."""

    fleet_report: Annotated[dict[str, Any], Field(title="Report", description="A FleetReport as plain JSON.")]


class FleetState(FleetInput, FleetOutput, total=False):
    """All channels. Those that are not input or output are private to the subgraph."""

    fleet_readings: Annotated[dict[str, Any], merged]
    fleet_failures: Annotated[dict[str, Any], merged]
    fleet_groups: list[dict[str, Any]]
    fleet_steps: Annotated[dict[str, Any], merged]
    fleet_stop: str


class ServerView(BaseModel):
    """View of a node that works on one server of many."""

    server: str
    fleet_reason: str = ""
    reading: Reading | None = None
    update: ConfigUpdate | None = None
    step: Step = Step()


class FleetView(BaseModel):
    """View of a node that sees all servers."""

    fleet_reason: str = ""
    fleet_readings: dict[str, Reading] = {}
    fleet_failures: dict[str, dict[str, str]] = {}
    fleet_groups: list[Group] = []
    fleet_steps: dict[str, Step] = {}
    fleet_stop: str | None = None


class FleetDecision(BaseModel):
    """Yes or no to all changes that were shown."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    type: Annotated[Literal["approve", "reject"], Field(title="Decision")]
    """approve: roll out what was shown; reject: change nothing."""
    message: Annotated[str | None, Field(title="Reason")] = None
    """Why, for a rejection."""


class FleetApproval(BaseModel):
    """The answer to the approval interrupt: exactly one decision."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, title="Approval of a roll-out")

    decisions: Annotated[list[FleetDecision], Field(title="Decision", min_length=1, max_length=1)]
    """One decision for all that was shown."""
    fingerprint: Annotated[str | None, Field(title="Fingerprint")] = None
    """If given, it must be that of the changes that were shown."""
