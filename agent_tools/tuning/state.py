"""What flows through `tune_cache`: its input, its report, its settings (the context), and the private channels between.

Channels hold plain JSON; nodes read them through the Pydantic views below, so a checkpoint is never half typed.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict

from agent_tools.errors import LMCacheToolError
from agent_tools.models import Advice, Bounds, CacheOptimizationResult, ChangeResult, ConfigUpdate, Mode, Plan, Verification
from agent_tools.models.change import Baseline
from agent_tools.models.config import Frozen, Line

APPLY = "lmcache_apply_plan"
"""Name under which approval interfaces show the plan."""


class TuneContext(BaseModel):
    """How one run of `tune_cache` goes about it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, title="Settings of a tuning run")

    cache: Annotated[str, Field(title="Cache", examples=["default"])] = "default"
    """Name of the cache in the operator's directory."""
    mode: Annotated[Mode, Field(title="Mode")] = Mode.APPROVE
    """observe: only read; recommend: also say what would help; approve: act once a person approved; auto: act within bounds."""
    window_seconds: Annotated[float, Field(ge=0, title="Window (seconds)", examples=[30, 300])] = 30.0
    """How long to observe before judging; 0 takes everything since the cache process started."""
    verify_seconds: Annotated[float, Field(gt=0, title="Patience for verification (seconds)", examples=[120, 600])] = 120.0
    """How long to wait at most, after a change, for as much traffic as was observed before it."""
    bounds: Annotated[Bounds | None, Field(title="Bounds", examples=[{"max_size_mb": 4096}])] = None
    """Narrows the operator's bounds for this run; never widens them."""


Context = TypeVar("Context", bound=BaseModel)


def context_of(context: object, kind: type[Context], key: str) -> Context:
    """The settings of one kind of run, whatever a host passes as context.

    ``None`` gives the defaults; a mapping is read field by field, ignoring what is not ours; a host's own object may carry
    ours as an attribute or key `key`, the name of the graph.

    Raises:
        LMCacheToolError: The host passed settings that make no sense.
    """
    try:
        return _context_of(context, kind, key)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise LMCacheToolError(f"the settings of this run are wrong ({where}); nothing was done") from error


def _context_of(context: object, kind: type[Context], key: str) -> Context:
    if isinstance(context, kind):
        return context
    nested = context.get(key) if isinstance(context, Mapping) else getattr(context, key, None)
    if nested is not None:
        return _context_of(nested, kind, key)
    if isinstance(context, Mapping):
        return kind(**{name: context[name] for name in kind.model_fields if name in context})
    return kind()


def tune_context(context: object) -> TuneContext:
    """The settings of a run of `tune_cache`; see `context_of`."""
    return context_of(context, TuneContext, "tune_cache")


class TuneInput(TypedDict, total=False):
    """What starts a run; all of it optional."""

    tune_reason: Annotated[
        str,
        Field(
            title="Reason",
            description="Why tuning is asked for; goes into the change log.",
            examples=["before the nightly batch"],
        ),
    ]


class TuneOutput(TypedDict, total=False):
    """What a run leaves."""

    tune_report: Annotated[dict[str, Any], Field(title="Report", description="A TuneReport as plain JSON.")]


class TuneState(TuneInput, TuneOutput, total=False):
    """All channels. Those that are not input or output are private to the subgraph."""

    tune_baseline: dict[str, Any]
    tune_advice: dict[str, Any]
    tune_plan: dict[str, Any]
    tune_edit: dict[str, Any]
    tune_change: dict[str, Any]
    tune_dropped: dict[str, Any]
    tune_verification: dict[str, Any]
    tune_undo: dict[str, Any]
    tune_stop: dict[str, Any]


class Outcome(str, Enum):
    """How a run ended."""

    OBSERVED = "observed"
    NO_DATA = "no_data"
    DO_NOTHING = "do_nothing"
    RECOMMENDED = "recommended"
    """Something would help; the mode was not to act."""
    NEEDS_OPERATOR = "needs_operator"
    """Something would help, and only the operator can do it: the report holds the command line."""
    REJECTED = "rejected"
    """The plan was not approved."""
    OPTIMIZED = "optimized"
    """Entries were dropped."""
    IMPROVED = "improved"
    """Changed, and verified to help."""
    KEPT_UNDECIDED = "kept_undecided"
    """Changed and kept; whether it helped could not be told."""
    ROLLED_BACK = "rolled_back"
    """Changed, seen to harm, and undone."""
    FAILED = "failed"
    """An error ended the run; the message says what is known."""


class Stop(Frozen):
    """Why a run goes straight to its report."""

    outcome: Outcome
    summary: str


class TuneReport(Frozen):
    """What a run of `tune_cache` did and found."""

    cache: str
    mode: Mode
    outcome: Outcome
    summary: str
    """One or two sentences."""
    advice: Advice | None = None
    plan: Plan | None = None
    change: ChangeResult | None = None
    dropped: CacheOptimizationResult | None = None
    verification: Verification | None = None
    undo: ChangeResult | None = None


class EditedArguments(BaseModel):
    """The arguments of the action as a person wants them; the plan's own ones may stay among them."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    update: Annotated[ConfigUpdate, Field(title="Settings")]
    """The settings wanted instead of the plan's."""
    fingerprint: Annotated[str | None, Field(title="Plan fingerprint")] = None
    """If given, it must be that of the plan that was shown."""


class EditedAction(BaseModel):
    """What to do instead."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(title="Action")] = APPLY
    """As it was shown; there is one."""
    args: Annotated[EditedArguments, Field(title="Arguments")]
    """What to do it with."""


class Decision(BaseModel):
    """One decision of a person, in LangChain's human-in-the-loop shape."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    type: Annotated[Literal["approve", "edit", "reject"], Field(title="Decision")]
    """approve: carry out the plan; edit: carry out `edited_action` instead; reject: change nothing."""
    message: Annotated[str | None, Field(title="Reason", examples=["not before the weekend"])] = None
    """Why, for a rejection."""
    edited_action: Annotated[EditedAction | None, Field(title="Edited plan")] = None
    """For edit, and only then: what to do instead."""

    @model_validator(mode="after")
    def _edit_says_what(self) -> "Decision":
        if (self.type == "edit") != (self.edited_action is not None):
            msg = "edited_action goes with the decision edit, and that needs it"
            raise ValueError(msg)
        return self


class Approval(BaseModel):
    """The answer to the approval interrupt: exactly one decision."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        title="Approval of a change",
        json_schema_extra={
            "examples": [
                {"decisions": [{"type": "approve"}]},
                {"decisions": [{"type": "reject", "message": "not before the weekend"}]},
                {"decisions": [{"type": "edit", "edited_action": {"args": {"update": {"max_size_mb": 2048}}}}]},
            ]
        },
    )

    decisions: Annotated[list[Decision], Field(title="Decision", min_length=1, max_length=1)]
    """One decision for the one action that was shown."""
    fingerprint: Annotated[str | None, Field(title="Plan fingerprint")] = None
    """If given, it must be that of the plan that was shown."""


class Nothing(BaseModel):
    """View of a node that reads no channel but the reason."""

    tune_reason: Line = ""


class Observed(Nothing):
    """View after `read_metrics`."""

    tune_baseline: Baseline


class Advised(Observed):
    """View after `recommend`."""

    tune_advice: Advice


class Planned(Advised):
    """View after `recommend` made a plan."""

    tune_plan: Plan
    tune_edit: ConfigUpdate | None = None


class Changed(Planned):
    """View after `reconfigure`."""

    tune_change: ChangeResult


class Finished(Nothing):
    """View of `report`: whatever the run came to."""

    tune_baseline: Baseline | None = None
    tune_advice: Advice | None = None
    tune_plan: Plan | None = None
    tune_change: ChangeResult | None = None
    tune_dropped: CacheOptimizationResult | None = None
    tune_verification: Verification | None = None
    tune_undo: ChangeResult | None = None
    tune_stop: Stop | None = None
