"""A change of a cache: its plan, what came of it, and whether it helped."""

from enum import Enum
from typing import Annotated

from pydantic import AwareDatetime, Field

from .advice import Gain, SettingChange
from .config import CacheConfig, ConfigUpdate, Frozen, Line, SupportLevel
from .metrics import CacheMetrics


class Mode(str, Enum):
    """How much a run may do on its own."""

    OBSERVE = "observe"
    """Read and report."""
    RECOMMEND = "recommend"
    """Also say what would help."""
    APPROVE = "approve"
    """Act after a person approved the exact plan."""
    AUTO = "auto"
    """Act within the operator's bounds."""


class Plan(Frozen):
    """What would be changed, bound to the configuration it was made for."""

    plan_id: str
    """Names the plan in messages."""
    cache: str
    """Name of the cache in the operator's directory."""
    created_at: AwareDatetime
    """When it was made, UTC."""
    update: ConfigUpdate
    """The settings asked for."""
    changes: Annotated[tuple[SettingChange, ...], Field(min_length=1)]
    """Old -> new for each setting that differs from what is in force."""
    reason: Line
    """Why, as the caller says."""
    loses: str | None = None
    """What applying it costs beyond the settings (a restart loses all of L1); ``None`` when nothing."""
    command: str | None = None
    """For a cache we do not own: the command line that its operator has to start instead."""
    fingerprint: str
    """Digest of cache, process and configuration the plan was made for, and of the settings asked for."""

    @property
    def needs_restart(self) -> bool:
        """Whether any setting needs a restart of the cache process."""
        return any(change.how is SupportLevel.RESTART for change in self.changes)

    def __str__(self) -> str:
        return "; ".join(map(str, self.changes))


class ChangeOutcome(str, Enum):
    """What is known about a change."""

    STARTED = "started"
    """Sent, no outcome recorded: when this is the last word, the outcome is unknown."""
    APPLIED = "applied"
    REFUSED = "refused"
    """Nothing was changed."""
    UNKNOWN = "unknown"
    """It may or may not be in force: read the configuration."""
    FAILED = "failed"
    """The cache died or broke during the change."""
    VERIFIED = "verified"
    KEPT_UNVERIFIED = "kept_unverified"
    """In force, but its effect could not be told."""
    UNDONE = "undone"


class ChangeRecord(Frozen):
    """One line of the change log. Lines with the same `change_id` tell the story of one change."""

    change_id: str
    """The change it belongs to."""
    recorded_at: AwareDatetime
    """When this line was written, UTC."""
    cache: str
    """Name of the cache in the operator's directory."""
    actor: Line
    """Who asked: a tool, graph or command, as the caller names it."""
    operation: str
    """``reconfigure``, ``optimize``, ``clear``, ``undo`` ..."""
    outcome: ChangeOutcome
    """What is known of the change from this line on."""
    reason: Line = ""
    """Why it was wanted, as the caller says."""
    changes: tuple[SettingChange, ...] = ()
    """Old -> new for each setting; empty for an operation on entries."""
    before: CacheConfig | None = None
    """The configuration before; what an undo goes back to."""
    detail: Line = ""
    """What LMCache answered, or what was measured."""
    undoes: str | None = None
    """The change that this one undoes."""
    plan_id: str | None = None
    """The plan that was carried out, if there was one."""


class ChangeResult(Frozen):
    """What came of applying a plan."""

    success: bool
    """Whether the settings are in force."""
    message: str
    """What was changed, in one line."""
    change_id: str
    """Its id in the change log; undo takes it."""
    plan: Plan
    """The plan that was carried out."""
    config: CacheConfig
    """Read back from the cache after the change."""
    undo: str
    """How to take it back."""


class CacheOptimizationResult(Frozen):
    """What dropping entries (optimize or clear) did, by LMCache's own object count before and after."""

    success: bool
    """Whether it was carried out."""
    message: str
    """What was done, in one sentence."""
    entries_before: Annotated[int, Field(ge=0)]
    """Objects in L1 before."""
    entries_after: Annotated[int, Field(ge=0)]
    """Objects in L1 after."""
    entries_evicted: Annotated[int, Field(ge=0)]
    """Objects that went."""
    memory_freed_mb: float
    """L1 use before less L1 use after, MB; negative when traffic stored more meanwhile."""
    optimization_time_ms: Annotated[float, Field(ge=0)]
    """How long it took, milliseconds."""
    change_id: str | None = None
    """Its id in the change log."""


class WarmResult(Frozen):
    """What loading a known prefix from L2 into L1 found."""

    requested_chunks: Annotated[int, Field(ge=0)]
    """Whole chunks in the prefix."""
    found_chunks: Annotated[int, Field(ge=0)]
    """Chunks of it that are now in L1."""
    message: str
    """The same in words."""


class PinResult(Frozen):
    """What pinning a prompt prefix, or taking the pin off, did."""

    chunks: Annotated[int, Field(ge=0)]
    """Chunks that were pinned or set free."""
    change_id: str
    """Its id in the change log."""
    message: str
    """The same in words."""


class Baseline(Frozen):
    """What a cache did over one window, in enough detail to be compared with another."""

    metrics: CacheMetrics
    """The figures of the whole window."""
    intervals: tuple[tuple[int, int], ...] = ()
    """(requested, hit) tokens between successive readings; quiet ones left out."""
    requests_digest: str | None = None
    """Digest of the requests as the access log has them, whatever their order; ``None`` without a log."""


class VerificationVerdict(str, Enum):
    """Whether a change helped."""

    BETTER = "better"
    """The lower bound of the measured gain is above zero."""
    WORSE = "worse"
    """The upper bound of the measured gain is below zero."""
    UNDECIDED = "undecided"


class Verification(Frozen):
    """Measured effect of a change: before against after."""

    verdict: VerificationVerdict
    """Whether it helped."""
    in_force: bool
    """Whether the changed settings read back from the cache as wanted."""
    gain: Gain | None
    """Measured difference of the token hit rate; ``None`` when a side has no traffic."""
    paired: bool
    """Whether both windows held the same requests (their access logs agree)."""
    before: CacheMetrics
    """The figures before the change."""
    after: CacheMetrics
    """The figures since the change."""
    why: str
    """The verdict in words, with its figures."""
