"""A change of a cache: its plan, what came of it, and whether it helped."""

from enum import Enum
from typing import Annotated

from pydantic import AwareDatetime, Field

from agent_tools.plain import MESSAGE, plain

from .advice import Gain, SettingChange
from .config import CacheConfig, ConfigUpdate, Frozen, Line, SupportLevel
from .metrics import CacheMetrics

VARIABLE = "LMCACHE_"
"""Beginning of the variables that set in-process LMCache in the environment of an engine."""


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
    """What a change would do, bound to the configuration it was made for."""

    plan_id: str
    """The name of the plan in messages."""
    cache: str
    """Name of the cache in the operator's directory."""
    created_at: AwareDatetime
    """When the plan was made, UTC."""
    update: ConfigUpdate
    """The settings asked for."""
    changes: Annotated[tuple[SettingChange, ...], Field(min_length=1)]
    """Old -> new for each setting that differs from the setting in force."""
    reason: Line
    """Why the caller wants the change, in their words."""
    loses: str | None = None
    """What the change costs besides (a restart loses all of L1); ``None`` if no cached data is lost."""
    command: str | None = None
    """What the operator starts or sets, if the change needs a restart that only they can make: a server's command line, a patch
    command for its Kubernetes resource, or the variables of an engine with LMCache inside."""
    predicted: Gain | None = None
    """The gain that the model predicts on the requests observed before; ``None`` if nobody asked or nothing can be predicted."""
    fingerprint: str
    """A digest of the cache, its process and its configuration when the plan was made, and of the settings asked for."""

    @property
    def needs_restart(self) -> bool:
        """Whether any setting needs a restart of the cache process."""
        return any(change.how is SupportLevel.RESTART for change in self.changes)

    @property
    def for_the_operator(self) -> str | None:
        """What the operator has to do, in words; ``None`` if the change needs nobody else."""
        if self.command is None:
            return None
        how = "restart the engine with" if self.command.startswith(VARIABLE) else "run"
        return f"{how}: {plain(self.command, MESSAGE)}"

    def __str__(self) -> str:
        return "; ".join(map(str, self.changes))


class ChangeOutcome(str, Enum):
    """What is known about a change."""

    STARTED = "started"
    """The change was sent. If no later line follows, the outcome is unknown."""
    APPLIED = "applied"
    REFUSED = "refused"
    """Nothing was changed: all settings read as before."""
    UNKNOWN = "unknown"
    """The change may or may not be in force: read the configuration."""
    FAILED = "failed"
    """The cache died or broke during the change."""
    VERIFIED = "verified"
    FOUND_WORSE = "found_worse"
    """The change is in force, and the verification shows that it does harm."""
    KEPT_UNVERIFIED = "kept_unverified"
    """The change is in force, but its effect could not be measured."""
    UNDONE = "undone"


class VerificationVerdict(str, Enum):
    """Whether a change helped."""

    BETTER = "better"
    """The lower bound of the measured gain is above zero."""
    WORSE = "worse"
    """The upper bound of the measured gain is below zero."""
    UNDECIDED = "undecided"


class Baseline(Frozen):
    """What a cache did over one window, in enough detail to be compared with another."""

    metrics: CacheMetrics
    """The figures of the whole window."""
    intervals: tuple[tuple[int, int], ...] = ()
    """(requested, hit) tokens between successive readings; quiet ones left out."""
    loaded: tuple[int, ...] = ()
    """For each of `intervals`, the tokens that the engine loaded from LMCache, as it counts; empty if it was not read."""
    requests_digest: str | None = None
    """Digest of the requests as the access log has them, whatever their order; ``None`` without a log."""


class ChangeRecord(Frozen):
    """One line of the change log. All lines with the same `change_id` belong to one change."""

    change_id: str
    """The id of the change."""
    recorded_at: AwareDatetime
    """When this line was written, UTC."""
    cache: str
    """Name of the cache in the operator's directory."""
    actor: Line
    """The tool, graph or command that made the change, and who approved it, if a person did."""
    operation: str
    """``reconfigure``, ``optimize``, ``clear``, ``undo`` ..."""
    outcome: ChangeOutcome
    """What is known about the change from this line on."""
    reason: Line = ""
    """Why the caller wanted the change, in their words."""
    changes: tuple[SettingChange, ...] = ()
    """Old -> new for each setting; empty for an operation on entries."""
    before: CacheConfig | None = None
    """The configuration before the change, to which an undo returns."""
    detail: Line = ""
    """What LMCache answered, or what was measured."""
    undoes: str | None = None
    """The id of the change that this change undoes."""
    plan_id: str | None = None
    """The id of the plan that was carried out, if there was a plan."""
    server: str | None = None
    """Identity of the server process that was changed. It is the same under every name and address of the server."""
    baseline: Baseline | None = None
    """What the cache did before the change; only in the first record of a change of settings. A later process verifies by it."""
    predicted: Gain | None = None
    """The gain that was predicted when the change was planned."""
    verdict: VerificationVerdict | None = None
    """What a verification found; only in its own record."""
    gain: Gain | None = None
    """The measured gain; only in the record of a verification."""


class ChangeResult(Frozen):
    """The result of applying a plan."""

    success: bool
    """Whether the settings are in force."""
    message: str
    """What was changed, in one line."""
    change_id: str
    """The id of the change in the change log, for an undo."""
    plan: Plan
    """The plan that was carried out."""
    config: CacheConfig
    """The configuration, read back from the cache after the change."""
    undo: str
    """How to undo the change."""


class CacheOptimizationResult(Frozen):
    """The result of dropping entries (optimize or clear), by LMCache's own object count before and after."""

    success: bool
    """Whether it was carried out."""
    message: str
    """What was done, in one sentence."""
    entries_before: Annotated[int, Field(ge=0)]
    """Objects in L1 before."""
    entries_after: Annotated[int, Field(ge=0)]
    """Objects in L1 after."""
    entries_evicted: Annotated[int, Field(ge=0)]
    """Objects that were removed."""
    memory_freed_mb: float
    """L1 use before minus L1 use after, MB; negative if traffic stored more meanwhile."""
    optimization_time_ms: Annotated[float, Field(ge=0)]
    """How long it took, milliseconds."""
    change_id: str | None = None
    """The id of the change in the change log."""


class WarmResult(Frozen):
    """The result of loading a known prefix from L2 into L1."""

    requested_chunks: Annotated[int, Field(ge=0)]
    """Whole chunks in the prefix."""
    found_chunks: Annotated[int, Field(ge=0)]
    """Chunks of the prefix that are now in L1."""
    message: str
    """The same in words."""
    change_id: str | None = None
    """The id of the change in the change log."""


class PinResult(Frozen):
    """The result of pinning or unpinning a prompt prefix."""

    chunks: Annotated[int, Field(ge=0)]
    """Chunks that were pinned or unpinned."""
    change_id: str
    """The id of the change in the change log."""
    message: str
    """The same in words."""


class Verification(Frozen):
    """The measured effect of a change, before against after."""

    verdict: VerificationVerdict
    """Whether the change helped."""
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
    change_id: str | None = None
    """The change that was verified."""
    predicted: Gain | None = None
    """The gain that was predicted before the change, or that the model predicts on the requests before it."""

    @property
    def keep(self) -> bool:
        """Return whether to keep the change: unless it did harm."""
        return self.verdict is not VerificationVerdict.WORSE
