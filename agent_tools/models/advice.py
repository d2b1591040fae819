"""The advice on a cache: its symptoms, the recommendations, and how reliable they are."""

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError, model_validator

from agent_tools.plain import MESSAGE, names_cut, plain, points

from .config import ConfigUpdate, Frozen, L2Adapter, Line, Support, SupportLevel
from .cost import Range, Saving
from .engine import ExpectedTtft
from .metrics import Window


class Severity(str, Enum):
    """How much a symptom or recommendation matters."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Rung(str, Enum):
    """The kind of evidence behind a statement, weakest first."""

    COUNTERS = "counters"
    """Counters alone: they can name a symptom but cannot predict a gain."""
    HISTOGRAMS = "histograms"
    """Lifecycle histograms: they can bound a gain."""
    ACCESS_LOG = "access_log"
    """The recorded lookups: a gain can be computed from them."""


class Confidence(str, Enum):
    """How reliable a recommendation is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class SymptomCode(str, Enum):
    """The symptoms that the available data can distinguish."""

    NO_DATA = "no_data"
    NOTHING_TO_REUSE = "nothing_to_reuse"
    SHORT_PROMPTS = "short_prompts"
    L1_TOO_SMALL = "l1_too_small"
    STORES_FAIL = "stores_fail"
    WATERMARK_TOO_HIGH = "watermark_too_high"
    L1_NEVER_EVICTS = "l1_never_evicts"
    REQUEST_LARGER_THAN_L1 = "request_larger_than_l1"
    UNDER_STORED = "under_stored"
    CHUNKS_INCOMPLETE = "chunks_incomplete"
    MODEL_STARVES = "model_starves"
    TAILS_NOT_CACHED = "tails_not_cached"
    PREFIX_DIVERGES_EARLY = "prefix_diverges_early"
    CROWDED_OUT = "crowded_out"
    LOCKS_HELD = "locks_held"
    L2_TOO_SMALL = "l2_too_small"
    L2_NOT_RETAINED = "l2_not_retained"
    L2_SLOW = "l2_slow"
    L2_LOADS_FAIL = "l2_loads_fail"
    L2_LOSES_CHUNKS = "l2_loses_chunks"
    L2_UNBOUNDED = "l2_unbounded"
    TENANT_WITHOUT_QUOTA = "tenant_without_quota"
    MODEL_NOT_REGISTERED = "model_not_registered"
    MODEL_WITHOUT_LAYOUT = "model_without_layout"
    EVICTION_DEAD = "eviction_dead"
    ISOLATED_LRU_ON_L1 = "isolated_lru_on_l1"
    HASHES_UNSTABLE = "hashes_unstable"
    RESTARTED = "restarted"
    COUNTERS_INCOMPLETE = "counters_incomplete"
    RETURNS_TOO_LATE = "returns_too_late"
    EVICTS_UNJUDGED = "evicts_unjudged"
    ENGINE_QUEUES = "engine_queues"
    ENGINE_DECODES = "engine_decodes"
    ENGINE_CACHE_SERVES = "engine_cache_serves"
    LMCACHE_SAVES_NOTHING = "lmcache_saves_nothing"
    L1_SMALLER_THAN_ENGINE_CACHE = "l1_smaller_than_engine_cache"
    ENGINE_FIGURES_DO_NOT_FIT = "engine_figures_do_not_fit"
    NOTHING_WRONG = "nothing_wrong"


class Evidence(Frozen):
    """One measured figure behind a statement."""

    metric: str
    """What was measured, with its source in brackets."""
    value: float
    """The figure, in `unit`."""
    unit: str
    """Unit of the figure: ``tokens``, ``chunks``, ``share`` (of 1), ``MB`` ..."""


class Symptom(Frozen):
    """One thing that is wrong with a cache, or the statement that nothing is wrong."""

    code: SymptomCode
    """Code of the symptom."""
    severity: Severity
    """How much the symptom matters."""
    summary: Line
    """One sentence that a person can check against `evidence`."""
    evidence: tuple[Evidence, ...] = ()
    """The figures behind the summary."""
    rung: Rung = Rung.COUNTERS
    """The kind of evidence behind the symptom."""


class Gain(Frozen):
    """A predicted or measured difference in token hit rate (chunk-aligned), in [-1, 1]."""

    lower: Annotated[float, Field(ge=-1, le=1)]
    """Lower end of the interval."""
    estimate: Annotated[float, Field(ge=-1, le=1)]
    """The most likely difference."""
    upper: Annotated[float, Field(ge=-1, le=1)]
    """Upper end of the interval."""
    interval_percent: int = 90
    """How sure the interval is to hold, percent; 95 for a trial, over all looks at it together."""
    method: str
    """The method that computed it."""

    @model_validator(mode="after")
    def _ordered(self) -> "Gain":
        if not self.lower <= self.estimate <= self.upper:
            msg = f"the interval must contain its estimate, but {self.lower:g} <= {self.estimate:g} <= {self.upper:g} is false"
            raise ValueError(msg)
        return self


class SettingChange(Frozen):
    """One setting with its old and new value."""

    setting: str
    """Name of the setting, as in `ConfigUpdate`."""
    old: Any
    """Value before the change; ``None`` if unknown."""
    new: Any
    """Value after the change."""
    how: SupportLevel
    """How the setting is changed: ``live`` or ``restart``."""
    note: str = ""
    """What the change means on this deployment."""

    def __str__(self) -> str:
        return "{} {} -> {} ({})".format(self.setting, *self.in_words, self.how.value)

    @property
    def in_words(self) -> tuple[str, str]:
        """Return both values as a sentence shows them. L2 adapters are told in few words, unless the words would be the same."""
        if self.setting == "l2_adapters" and (words := (_l2_in_words(self.old), _l2_in_words(self.new)))[0] != words[1]:
            return words
        return _short(self.old), _short(self.new)


class ActionKind(str, Enum):
    """What a recommendation does: change settings, drop cold entries, or nothing."""

    RECONFIGURE = "reconfigure"
    OPTIMIZE = "optimize"
    NONE = "none"


class OptimizationRecommendation(Frozen):
    """One recommendation, with everything that a person needs to judge it."""

    priority: Severity
    """How much the symptom matters."""
    category: SymptomCode
    """The symptom that the recommendation treats."""
    title: str
    """What to do, in a few words."""
    description: str
    """Why it should help, in terms of the evidence."""
    expected_impact: str
    """The gain in words. The text says so if no gain can be predicted."""
    implementation_effort: str
    """How the change is made: live, with a restart, or by the operator."""
    action: ActionKind
    """The kind of action."""
    update: ConfigUpdate | None = None
    """The settings to change; ``None`` unless `action` is ``reconfigure``."""
    target_utilization_percent: Annotated[float, Field(gt=0, lt=100)] | None = None
    """The L1 use to reach, percent; ``None`` unless `action` is ``optimize``."""
    changes: tuple[SettingChange, ...] = ()
    """Old and new value of each setting in `update`."""
    evidence: tuple[Evidence, ...] = ()
    """The figures behind the recommendation."""
    rung: Rung
    """The kind of evidence behind the recommendation."""
    gain: Gain | None = None
    """The predicted gain; ``None`` if the evidence does not allow a prediction."""
    ceiling: Annotated[float, Field(ge=0, le=1)] | None = None
    """The best token hit rate that any size could give on the observed requests."""
    benefit: Range | None = None
    """The figure that ranks the recommendations, as token hit rate. A hit from L2 counts by the time it saves compared with a hit
    from L1, and the cost of added memory is subtracted. Without the operator's economics it equals the gain. ``None`` if no gain
    can be predicted."""
    saving: Saving | None = None
    """The gain in seconds and money per hour; ``None`` without the operator's economics."""
    ttft: ExpectedTtft | None = None
    """Time to first token now and after the change. ``None`` if caches.toml names no engine, if the engine has not shown its
    speed yet, or if the engine's own prefix cache serves part of the prompts."""
    confidence: Confidence
    """How reliable the recommendation is."""
    confidence_reasons: tuple[str, ...]
    """The reasons for this confidence, and not more or less."""
    cost: str
    """What the change costs: memory, a restart ..."""
    risk: str
    """What can go wrong, or why the change is not allowed."""
    undo: str
    """How to undo the change."""
    verification: str
    """How and when the change will be verified."""
    within_bounds: bool
    """Whether the operator's bounds allow the change. False: it would help, but must not be applied."""


class SpareMemory(Frozen):
    """How much smaller L1 could be and still save as many tokens, within half a point, on the observed requests."""

    size_mb: Annotated[float, Field(ge=0)]
    """L1 in force."""
    enough_mb: Annotated[float, Field(ge=0)]
    """The smallest L1 within the operator's bounds that keeps what is saved. All other settings stay."""
    saved_now: Annotated[float, Field(ge=0, le=1)]
    """Predicted share of the requested tokens that LMCache saves with the L1 in force: the token hit rate, and less than that if
    the engine's own cache serves part of the hits (`beyond_own`)."""
    saved_then: Annotated[float, Field(ge=0, le=1)]
    """The same with the smaller L1."""
    gain: Gain
    """The difference, on the same requests."""
    beyond_own: bool
    """Whether hits that the engine's own prefix cache has as well are left out."""
    observed_seconds: Annotated[float, Field(ge=0)]
    """Seconds from the first to the last lookup in the log. Prompts that come back after longer are not in it."""

    @property
    def spare_mb(self) -> float:
        """Return the memory that is not needed, MB."""
        return self.size_mb - self.enough_mb

    def __str__(self) -> str:
        what = "what LMCache saves beyond the engine's own cache" if self.beyond_own else "the token hit rate"
        interval = f"90 % interval {points(self.gain.lower)} to {points(self.gain.upper)}"
        return (
            f"an L1 of {self.enough_mb:,g} MB instead of {self.size_mb:,g} would keep {what}: {self.saved_then:.1%} instead of"
            f" {self.saved_now:.1%} ({interval}), on the requests of {self.observed_seconds / 60:,.0f} min. Prompts that come"
            " back later than that are not counted"
        )


class Verdict(str, Enum):
    """What to do about a cache."""

    ACT = "act"
    DO_NOTHING = "do_nothing"
    NO_DATA = "no_data"


class Advice(Frozen):
    """The answer to "what would improve this cache?"."""

    cache: str
    """Name of the cache in caches.toml."""
    created_at: AwareDatetime
    """When the advice was given, UTC."""
    window: Window
    """The observed window."""
    token_hit_rate: Annotated[float, Field(ge=0, le=1)] | None
    """Token hit rate measured in the window, chunk-aligned; ``None`` if no tokens were requested."""
    symptoms: tuple[Symptom, ...]
    """The symptoms, worst first; `nothing_wrong` if there are none."""
    recommendations: tuple[OptimizationRecommendation, ...] = ()
    """The recommendations, best first."""
    verdict: Verdict
    """Whether to act."""
    why: Line
    """One or two sentences: why to act, or why not to."""
    rung: Rung
    """The strongest evidence available."""
    trial: OptimizationRecommendation | None = None
    """If nothing is worth a change: a change of small expected gain that is live, keeps what is cached and costs no memory, or no
    more than the operator's `trial_mb`. It can be tried: kept if it helps, undone if not."""

    spare: SpareMemory | None = None
    """The memory that L1 does not need; ``None`` if there is none worth telling, if a change or a trial is advised, or if nothing
    can be predicted."""

    @property
    def best(self) -> OptimizationRecommendation | None:
        """Return the recommendation to follow; ``None`` unless the verdict is to act."""
        return self.recommendations[0] if self.verdict is Verdict.ACT else None


def _short(value: Any) -> str:  # noqa: ANN401  settings have many types
    if isinstance(value, float):
        return f"{value:g}"
    return "unknown" if value is None else plain(names_cut(getattr(value, "value", value)), MESSAGE)


_ADAPTERS = TypeAdapter(tuple[L2Adapter, ...])


def _l2_in_words(adapters: Any) -> str:  # noqa: ANN401  as `SettingChange` has it
    """Return L2 adapters in few words."""
    try:
        found = _ADAPTERS.validate_python(adapters)
    except ValidationError:
        return _short(adapters)
    return " and ".join(one.in_words for one in found) or "none"


def setting_changes(
    update: ConfigUpdate, current: Mapping[str, object], support: Mapping[str, Support]
) -> tuple[SettingChange, ...]:
    """Return old and new value of each setting in an update that differs from the setting in force."""
    wanted = update.known()
    return tuple(
        SettingChange(setting=name, old=current.get(name), new=new, how=support[name].level, note=support[name].reason)
        for name, new in wanted.items()
        if current.get(name) != new
    )
