"""The state of `tune_cache`: its input, its report, its settings (the context), and its private channels.

Channels hold plain JSON, so a checkpoint needs none of our types. Nodes read the channels through the Pydantic views below.
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
    """Settings of one run of `tune_cache`."""

    model_config = ConfigDict(
        hide_input_in_errors=True, frozen=True, extra="forbid", use_attribute_docstrings=True, title="Settings of a tuning run"
    )

    cache: Annotated[str, Field(title="Cache", examples=["default"])] = "default"
    """Name of the cache in caches.toml."""
    mode: Annotated[Mode, Field(title="Mode")] = Mode.APPROVE
    """observe: only read; recommend: also recommend changes; approve: act after a person approves; auto: act within bounds."""
    window_seconds: Annotated[float, Field(ge=0, title="Window (seconds)", examples=[30, 300])] = 30.0
    """Seconds to observe the cache. 0 uses all data since the cache process started."""
    verify_seconds: Annotated[float, Field(gt=0, title="Patience for verification (seconds)", examples=[120, 600])] = 120.0
    """Longest time, in seconds, to wait after a change until the cache has seen as much traffic as before the change."""
    bounds: Annotated[Bounds | None, Field(title="Bounds", examples=[{"max_size_mb": 4096}])] = None
    """Bounds for this run. They can only narrow the operator's bounds."""


Context = TypeVar("Context", bound=BaseModel)


def context_of(context: object, kind: type[Context], key: str) -> Context:
    """Return the settings of one kind of run from any context that a host passes.

    ``None`` gives the defaults. From a mapping, only our fields are read. A host's own object may hold our settings as an
    attribute or key named `key`, the name of the graph.

    Raises:
        LMCacheToolError: The host passed invalid settings.
    """
    try:
        return _context_of(context, kind, key)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
    # Outside of `except`: the first error holds the host's values, which may be secrets.
    raise LMCacheToolError(f"the settings of this run are invalid ({where}); correct them. Nothing was changed")


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
    """Return the settings of a run of `tune_cache`. See `context_of`."""
    return context_of(context, TuneContext, "tune_cache")


class TuneInput(TypedDict, total=False):
    """The input of a run. All keys are optional."""

    tune_reason: Annotated[
        str,
        Field(
            title="Reason",
            description="Why you start this run. The change log records it.",
            examples=["before the nightly batch"],
        ),
    ]


class TuneOutput(TypedDict, total=False):
    """The output of a run."""

    tune_report: Annotated[dict[str, Any], Field(title="Report", description="A TuneReport as plain JSON.")]


class TuneState(TuneInput, TuneOutput, total=False):
    """All channels. Channels that are not input or output are private to the subgraph."""

    tune_baseline: dict[str, Any]
    tune_advice: dict[str, Any]
    tune_plan: dict[str, Any]
    tune_edit: dict[str, Any]
    tune_approved: bool
    tune_change: dict[str, Any]
    tune_dropped: dict[str, Any]
    tune_verification: dict[str, Any]
    tune_undo: dict[str, Any]
    tune_stop: dict[str, Any]


class Outcome(str, Enum):
    """The outcome of a run."""

    OBSERVED = "observed"
    """The cache was only read, because the mode is observe."""
    NO_DATA = "no_data"
    """There was too little traffic for a recommendation."""
    DO_NOTHING = "do_nothing"
    """No change is worth making."""
    RECOMMENDED = "recommended"
    """A change would help. The run did not make it, because the mode is recommend."""
    NEEDS_OPERATOR = "needs_operator"
    """A change would help, but only the operator can make it. The report holds the command line."""
    REJECTED = "rejected"
    """A person rejected the plan."""
    OPTIMIZED = "optimized"
    """Cold entries were dropped."""
    IMPROVED = "improved"
    """The cache was changed, and the verification shows that the change helped."""
    KEPT_UNDECIDED = "kept_undecided"
    """The cache was changed, and the change is kept. The verification could not show whether it helped."""
    ROLLED_BACK = "rolled_back"
    """The cache was changed, the change made it worse, and the change was undone."""
    FAILED = "failed"
    """An error ended the run. The message says what is known."""


class Stop(Frozen):
    """The reason why a run goes straight to its report."""

    outcome: Outcome
    summary: str


class TuneReport(Frozen):
    """The report of a run of `tune_cache`."""

    cache: str
    mode: Mode
    outcome: Outcome
    summary: str
    """The result in one or two sentences."""
    advice: Advice | None = None
    plan: Plan | None = None
    change: ChangeResult | None = None
    dropped: CacheOptimizationResult | None = None
    verification: Verification | None = None
    undo: ChangeResult | None = None


class EditedArguments(BaseModel):
    """The arguments of the action as a person edited them. The plan's other arguments may stay."""

    model_config = ConfigDict(hide_input_in_errors=True, use_attribute_docstrings=True)

    update: Annotated[ConfigUpdate, Field(title="Settings")]
    """The settings that replace the plan's settings."""
    cache: Annotated[str | None, Field(title="Cache")] = None
    """The cache in the request. If given, it must be the plan's: an edit cannot lead to another cache."""
    fingerprint: Annotated[str | None, Field(title="Plan fingerprint")] = None
    """The fingerprint in the request. If given, it must match the plan in the request."""


class EditedAction(BaseModel):
    """The action that replaces the plan."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(title="Action")] = APPLY
    """Name of the action in the request."""
    args: Annotated[EditedArguments, Field(title="Arguments")]
    """The edited arguments."""


class Decision(BaseModel):
    """A person's decision, in LangChain's human-in-the-loop format."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="forbid", use_attribute_docstrings=True)

    type: Annotated[Literal["approve", "edit", "reject"], Field(title="Decision")]
    """approve: carry out the plan; edit: carry out `edited_action` instead; reject: change nothing."""
    message: Annotated[str | None, Field(title="Reason", examples=["not before the weekend"])] = None
    """The reason for a rejection."""
    edited_action: Annotated[EditedAction | None, Field(title="Edited plan")] = None
    """The action that replaces the plan. Required for edit, and not allowed otherwise."""

    @model_validator(mode="after")
    def _edit_says_what(self) -> "Decision":
        if (self.type == "edit") != (self.edited_action is not None):
            msg = "edited_action is required for the decision edit, and not allowed for any other decision"
            raise ValueError(msg)
        return self


class Approval(BaseModel):
    """The answer to the approval interrupt. It holds exactly one decision."""

    model_config = ConfigDict(
        hide_input_in_errors=True,
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
    """One decision on the action in the request."""
    fingerprint: Annotated[str | None, Field(title="Plan fingerprint")] = None
    """The fingerprint in the request. If given, it must match the plan in the request."""


class Nothing(BaseModel):
    """View of a node that reads only the reason."""

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
    tune_approved: bool = False
    """Whether a person was asked and approved."""


class Changed(Planned):
    """View after `reconfigure`."""

    tune_change: ChangeResult
    tune_verification: Verification | None = None


class Finished(Nothing):
    """View of `report`. It holds the results of all steps that ran."""

    tune_baseline: Baseline | None = None
    tune_advice: Advice | None = None
    tune_plan: Plan | None = None
    tune_change: ChangeResult | None = None
    tune_dropped: CacheOptimizationResult | None = None
    tune_verification: Verification | None = None
    tune_undo: ChangeResult | None = None
    tune_stop: Stop | None = None
