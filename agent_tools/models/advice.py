"""What is wrong with a cache, what would help, and how sure that is."""

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, model_validator

from agent_tools.plain import MESSAGE, plain

from .config import ConfigUpdate, Frozen, Line, Support, SupportLevel
from .cost import Range, Saving
from .engine import ExpectedTtft
from .metrics import Window


class Severity(str, Enum):
    """How much something matters."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Rung(str, Enum):
    """What kind of evidence a statement rests on, weakest first."""

    COUNTERS = "counters"
    """Counters alone: a symptom can be named, a gain cannot be predicted."""
    HISTOGRAMS = "histograms"
    """Lifecycle histograms: a gain can be bounded."""
    ACCESS_LOG = "access_log"
    """The lookups themselves: a gain can be computed."""


class Confidence(str, Enum):
    """How far a recommendation can be relied on."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class SymptomCode(str, Enum):
    """What can be wrong with a cache, as far as the product's data can tell it apart."""

    NO_DATA = "no_data"
    NOTHING_TO_REUSE = "nothing_to_reuse"
    SHORT_PROMPTS = "short_prompts"
    L1_TOO_SMALL = "l1_too_small"
    STORES_FAIL = "stores_fail"
    WATERMARK_TOO_HIGH = "watermark_too_high"
    REQUEST_LARGER_THAN_L1 = "request_larger_than_l1"
    UNDER_STORED = "under_stored"
    TAILS_NOT_CACHED = "tails_not_cached"
    PREFIX_DIVERGES_EARLY = "prefix_diverges_early"
    LOCKS_HELD = "locks_held"
    L2_TOO_SMALL = "l2_too_small"
    L2_NOT_RETAINED = "l2_not_retained"
    L2_SLOW = "l2_slow"
    L2_LOADS_FAIL = "l2_loads_fail"
    L2_LOSES_CHUNKS = "l2_loses_chunks"
    L2_UNBOUNDED = "l2_unbounded"
    TENANT_WITHOUT_QUOTA = "tenant_without_quota"
    EVICTION_DEAD = "eviction_dead"
    ISOLATED_LRU_ON_L1 = "isolated_lru_on_l1"
    HASHES_UNSTABLE = "hashes_unstable"
    RESTARTED = "restarted"
    COUNTERS_INCOMPLETE = "counters_incomplete"
    EVICTS_UNJUDGED = "evicts_unjudged"
    ENGINE_QUEUES = "engine_queues"
    ENGINE_DECODES = "engine_decodes"
    ENGINE_CACHE_SERVES = "engine_cache_serves"
    NOTHING_WRONG = "nothing_wrong"


class Evidence(Frozen):
    """One measured figure that a statement rests on."""

    metric: str
    """What was measured, with where it comes from in brackets."""
    value: float
    """The figure, in `unit`."""
    unit: str
    """``tokens``, ``chunks``, ``share`` (of 1), ``MB`` ..."""


class Symptom(Frozen):
    """One thing that is wrong, or the statement that nothing is."""

    code: SymptomCode
    """What is wrong."""
    severity: Severity
    """How much it matters."""
    summary: Line
    """One sentence a person can check against `evidence`."""
    evidence: tuple[Evidence, ...] = ()
    """The figures it rests on."""
    rung: Rung = Rung.COUNTERS
    """What kind of evidence that is."""


class Gain(Frozen):
    """A predicted or measured difference of the token hit rate (chunk-aligned), in [-1, 1]."""

    lower: Annotated[float, Field(ge=-1, le=1)]
    """Lower end of the 90 % interval."""
    estimate: Annotated[float, Field(ge=-1, le=1)]
    """The most likely difference."""
    upper: Annotated[float, Field(ge=-1, le=1)]
    """Upper end of the 90 % interval."""
    method: str
    """How it was computed."""

    @model_validator(mode="after")
    def _ordered(self) -> "Gain":
        if not self.lower <= self.estimate <= self.upper:
            msg = f"an interval must hold its estimate: {self.lower:g} <= {self.estimate:g} <= {self.upper:g} is false"
            raise ValueError(msg)
        return self


class SettingChange(Frozen):
    """One setting, from what it is to what it would be."""

    setting: str
    """Its name, as in `ConfigUpdate`."""
    old: Any
    """Its value before; ``None`` when that is not known."""
    new: Any
    """Its value after."""
    how: SupportLevel
    """``live`` or ``restart``."""
    note: str = ""
    """What this change means on this deployment."""

    def __str__(self) -> str:
        return f"{self.setting} {_short(self.old)} -> {_short(self.new)} ({self.how.value})"


class ActionKind(str, Enum):
    """What a recommendation does: change settings, drop cold entries, or nothing."""

    RECONFIGURE = "reconfigure"
    OPTIMIZE = "optimize"
    NONE = "none"


class OptimizationRecommendation(Frozen):
    """One thing that would help, with all that a person needs to judge it."""

    priority: Severity
    """How much the symptom matters."""
    category: SymptomCode
    """The symptom it treats."""
    title: str
    """What to do, in a few words."""
    description: str
    """Why it should help, in terms of the evidence."""
    expected_impact: str
    """The gain in words; says so when none can be predicted."""
    implementation_effort: str
    """``none`` (live), ``restart``, or what the operator has to do."""
    action: ActionKind
    """What kind of action it is."""
    update: ConfigUpdate | None = None
    """The settings to change; ``None`` unless `action` is ``reconfigure``."""
    target_utilization_percent: Annotated[float, Field(gt=0, lt=100)] | None = None
    """The L1 use to come down to; ``None`` unless `action` is ``optimize``."""
    changes: tuple[SettingChange, ...] = ()
    """Old -> new for each setting of `update`."""
    evidence: tuple[Evidence, ...] = ()
    """The figures it rests on."""
    rung: Rung
    """What kind of evidence that is."""
    gain: Gain | None = None
    """Predicted gain; ``None`` when the evidence does not allow one."""
    ceiling: Annotated[float, Field(ge=0, le=1)] | None = None
    """The best token hit rate any size could give on the observed requests."""
    benefit: Range | None = None
    """What ranks it: the gain with each hit of L2 counted by the time it saves against one of L1, less what added memory costs,
    both as token hit rate; the gain itself where the operator stated no economics. ``None`` when no gain can be predicted."""
    saving: Saving | None = None
    """The gain in seconds and money an hour; ``None`` where the operator stated no economics."""
    ttft: ExpectedTtft | None = None
    """Time to first token now and then; ``None`` where the operator names no engine, it has not shown its speed yet, or its own
    prefix cache serves part of the prompts."""
    confidence: Confidence
    """How far it can be relied on."""
    confidence_reasons: tuple[str, ...]
    """Why so far and no further."""
    cost: str
    """What it takes: memory, a restart ..."""
    risk: str
    """What can go wrong, or why it is not allowed."""
    undo: str
    """How to take it back."""
    verification: str
    """How it will be verified, and when."""
    within_bounds: bool
    """Whether the operator's bounds allow it; false names what would help but may not be applied."""


class Verdict(str, Enum):
    """What to do about a cache."""

    ACT = "act"
    DO_NOTHING = "do_nothing"
    NO_DATA = "no_data"


class Advice(Frozen):
    """The answer to "what would make this cache better?"."""

    cache: str
    """Name of the cache in the operator's directory."""
    created_at: AwareDatetime
    """When it was given, UTC."""
    window: Window
    """What was observed."""
    token_hit_rate: Annotated[float, Field(ge=0, le=1)] | None
    """Measured in the window, chunk-aligned."""
    symptoms: tuple[Symptom, ...]
    """What is wrong, worst first; `nothing_wrong` when nothing is."""
    recommendations: tuple[OptimizationRecommendation, ...] = ()
    """Best first."""
    verdict: Verdict
    """Whether to act."""
    why: Line
    """One or two sentences: why to act, or why not to."""
    rung: Rung
    """The strongest evidence there was."""

    @property
    def best(self) -> OptimizationRecommendation | None:
        """The recommendation to follow, when the verdict is to act."""
        return self.recommendations[0] if self.verdict is Verdict.ACT else None


def _short(value: Any) -> str:  # noqa: ANN401  settings have many types
    if isinstance(value, float):
        return f"{value:g}"
    return "unknown" if value is None else plain(getattr(value, "value", value), MESSAGE)


def setting_changes(
    update: ConfigUpdate, current: Mapping[str, object], support: Mapping[str, Support]
) -> tuple[SettingChange, ...]:
    """Old -> new for each setting of an update that differs from what is in force."""
    wanted = update.known()
    return tuple(
        SettingChange(setting=name, old=current.get(name), new=new, how=support[name].level, note=support[name].reason)
        for name, new in wanted.items()
        if current.get(name) != new
    )
