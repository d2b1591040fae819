"""The settings of a cache: every setting that can be read or that a caller can ask to change.

Sizes are MB = 2**20 bytes, lengths are tokens, shares are in (0, 1]. A setting that a deployment cannot know is ``None``.
"""

import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from agent_tools.errors import OutOfBoundsError
from agent_tools.plain import names_cut, plain, sentence
from agent_tools.redaction import is_the_same, without_secrets

MB = 2**20
MB_IN_A_GB = 1024
SKIP_L1 = "skip_l1"
"""`l2_store_policy` of an L1 that only passes chunks on to L2."""
DEFAULT_TENANT = "_default"
"""LMCache's name of the empty cache salt among the quotas."""

Share = Annotated[float, Field(gt=0, le=1)]
Line = Annotated[str, AfterValidator(sentence)]
"""Text that may quote others (names, reasons, answers of servers): one line of bounded length, without secrets."""


class Frozen(BaseModel):
    """A value: immutable, documented by its attribute docstrings, closed to unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class CacheStatus(str, Enum):
    """What state the cache as a whole is in."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    INITIALIZING = "initializing"
    ERROR = "error"


class EvictionPolicy(str, Enum):
    """Eviction policies of LMCache 0.5.6. ``lmcache server`` offers lru, arc and noop on L1 and isolated_lru on L2."""

    LRU = "lru"
    LFU = "lfu"
    FIFO = "fifo"
    RANDOM = "random"
    MRU = "mru"
    ARC = "arc"
    ISOLATED_LRU = "isolated_lru"
    NOOP = "noop"


EVICTION = ("eviction_policy", "trigger_watermark", "eviction_ratio")
"""Fields of an adapter's ``eviction`` block, in the order in which they are shown."""
UNKNOWN_SETTINGS = {"***": "unknown: LMCache up to 0.5.5 does not report the settings of its L2 adapters"}
"""Settings of an adapter that its server does not report. They are unknown, not empty."""


class L2Adapter(Frozen):
    """One L2 storage adapter behind the L1 cache."""

    type: Annotated[str, Field(min_length=1)]
    """LMCache's adapter type, e.g. ``fs``, ``fs_native``, ``resp``, ``dax``."""
    settings: dict[str, Any] = {}
    """The adapter's other fields as LMCache reports them; secrets are replaced by ``***`` in all that is shown."""

    @field_validator("settings")
    @classmethod
    def _finite(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Refuse NaN and infinities: JSON has neither, and an adapter could not be told from itself."""
        try:
            json.dumps(settings, allow_nan=False, default=str)
        except ValueError as error:
            raise ValueError("settings hold a number that is not finite") from error
        return settings

    @field_serializer("settings")
    def _shown(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Replace secrets: they are needed to attach the adapter, and no dump, log or checkpoint holds them."""
        shown: dict[str, Any] = without_secrets(settings)
        return shown

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [("type", plain(self.type)), ("settings", names_cut(without_secrets(self.settings)))]

    @property
    def masked(self) -> "L2Adapter":
        """The same adapter with its secrets replaced, as it is shown."""
        return L2Adapter(type=self.type, settings=without_secrets(self.settings))

    @property
    def settings_known(self) -> bool:
        """Whether the server reports the adapter's settings."""
        return not self.settings.keys() & UNKNOWN_SETTINGS.keys()

    @property
    def size_mb(self) -> float | None:
        """The declared capacity, MB; ``None`` if the adapter declares none, or in a form that we cannot read."""
        size = self.settings.get(self._size_field)
        return size * MB_IN_A_GB if isinstance(size, int | float) and size > 0 else None

    @property
    def eviction(self) -> Mapping[str, Any] | None:
        """The ``eviction`` block; an adapter without one never evicts."""
        block = self.settings.get("eviction")
        return block if isinstance(block, Mapping) else None

    @property
    def by_tenant(self) -> bool:
        """Whether the adapter evicts by tenant (cache salt): down to the tenant's quota, or everything if there is no quota."""
        return (self.eviction or {}).get("eviction_policy") == "IsolatedLRU"

    @property
    def in_words(self) -> str:
        """Type, capacity and eviction in a few words, without where it stores: a model has no use for paths and hosts."""
        size = "" if self.size_mb is None else f" of {self.size_mb:,.4g} MB"
        how = [plain((self.eviction or {}).get(name, "?")) for name in EVICTION]
        return plain(self.type) + size + (", {} {}/{}".format(*how) if self.eviction else "")

    def resized(self, size_mb: float) -> "L2Adapter":
        """Return the same adapter with another capacity."""
        return L2Adapter(type=self.type, settings={**self.settings, self._size_field: size_mb / MB_IN_A_GB})

    def same_store(self, given: "L2Adapter") -> bool:
        """Whether a given adapter stores where this one does. Capacity, eviction and credentials may differ, nothing else may.

        This adapter is the one in place. Hosts and paths are compared as they were given, not as they are shown: an address
        such as ``redis://elsewhere/@here`` is shown like ``redis://user:password@here``.
        """
        free = {self._size_field, "eviction"}
        mine, other = ({k: v for k, v in one.settings.items() if k not in free} for one in (self, given))
        return self.type == given.type and is_the_same(mine, other)

    @property
    def _size_field(self) -> str:
        return {"mock": "max_size_gb", "dax": "max_dax_size_gb"}.get(self.type, "max_capacity_gb")


class _Settings(Frozen):
    """The settings, all optional: ``None`` is *unknown* in a configuration and *unchanged* in an update."""

    enabled: bool | None = None
    """Whether the cache serves requests."""
    max_size_mb: Annotated[float, Field(gt=0)] | None = None
    """Capacity of the L1 (memory) tier, MB."""
    eviction_policy: EvictionPolicy | None = None
    """Eviction policy of the L1 tier."""
    enable_prefix_caching: bool | None = None
    """Prefix reuse; always on in LMCache."""
    min_prefix_length: Annotated[int, Field(gt=0)] | None = None
    """Shortest prefix that can be reused, tokens; on `lmcache server` this is the chunk size."""
    cache_warmup: bool | None = None
    """Whether known prefixes are loaded before requests ask for them."""
    auto_eviction: bool | None = None
    """Whether entries are evicted when space runs out; false is policy ``noop``."""
    enable_sharing: bool | None = None
    """Whether tenants share entries; false needs a cache salt per tenant, set by the engine's client."""
    max_concurrent_users: Annotated[int, Field(gt=0)] | None = None
    """Most users (tenants) the cache is to serve. It reads ``None``: LMCache sets no limit. The operator's bounds may set one."""
    chunk_size: Annotated[int, Field(gt=0)] | None = None
    """Tokens per chunk, the unit that is stored, hit and evicted."""
    eviction_watermark: Share | None = None
    """L1 use (used / total) at which eviction starts, in (0, 1]."""
    eviction_ratio: Share | None = None
    """Share of the keys that one eviction pass drops, in (0, 1]."""
    l2_adapters: tuple[L2Adapter, ...] | None = None
    """The L2 adapters, in LMCache's order."""
    l2_store_policy: Annotated[str, Field(pattern="^(default|skip_l1)$")] | None = None
    """``default`` keeps a stored chunk in L1 too, ``skip_l1`` moves it to L2 only."""
    l2_prefetch_policy: Annotated[str, Field(pattern="^(default|retain)$")] | None = None
    """``default`` drops an L2 chunk from L1 after the read, ``retain`` keeps it."""
    tenant_quotas_mb: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """L2 quota of each tenant (cache salt), MB."""

    def known(self) -> dict[str, Any]:
        """Return the settings that are not ``None``, as plain JSON."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"differences"})


class CacheConfig(_Settings):
    """A cache's settings as they are in force now; ``None`` where the deployment cannot tell."""

    hash_algorithm: str | None = None
    """The algorithm that names chunks. Only LMCache's own ones give the same names in all processes (see `stable_hashes`)."""
    differences: dict[str, dict[str, Any]] = {}
    """For a cache of several members, settings in which they differ, hence ``None`` above: setting -> member -> value."""

    @property
    def stable_hashes(self) -> bool:
        """Whether a chunk has the same name in every process, so that L2 can be shared and survives a restart.

        Unknown names silently fall back to Python's ``hash`` (0.5.6), which differs without ``PYTHONHASHSEED``.
        """
        return self.hash_algorithm is None or self.hash_algorithm in STABLE_HASHES


STABLE_HASHES = ("blake3", "sha256_cbor", "sha256_cbor_64bit", "xxhash", "xxhash_cbor")


class ConfigUpdate(_Settings):
    """The settings to change, at least one; ``None`` changes nothing. ``auto_eviction=false`` implies policy ``noop``."""

    @model_validator(mode="before")
    @classmethod
    def _off_is_noop(cls, given: Any) -> Any:  # noqa: ANN401  whatever the caller gave
        off = isinstance(given, Mapping) and given.get("auto_eviction") is False and given.get("eviction_policy") is None
        return {**given, "eviction_policy": EvictionPolicy.NOOP} if off else given

    @model_validator(mode="after")
    def _makes_sense(self) -> "ConfigUpdate":
        if not self.known():
            msg = f"give at least one setting to change; there are: {', '.join(SETTINGS)}"
            raise ValueError(msg)
        policy = self.eviction_policy
        if policy is not None and self.auto_eviction is (policy is EvictionPolicy.NOOP):
            msg = f"auto_eviction={self.auto_eviction} contradicts eviction_policy={policy.value}: noop is no eviction"
            raise ValueError(msg)
        return self


SETTINGS: tuple[str, ...] = tuple(_Settings.model_fields)
"""The names of all settings, as `Deployment.support` reports them."""


class SupportLevel(str, Enum):
    """How a deployment can change a setting."""

    LIVE = "live"
    RESTART = "restart"
    UNSUPPORTED = "unsupported"


class Support(Frozen):
    """Whether and how one setting can be changed on one deployment."""

    level: SupportLevel
    """``live`` without interruption, ``restart`` of the cache process (L1 is lost), or ``unsupported``."""
    reason: str
    """Why, and what can be done instead, in one sentence."""


class Bounds(Frozen):
    """What the operator lets an agent change, enforced below the tools; nothing outside them is proposed or applied."""

    min_size_mb: Annotated[float, Field(gt=0)] | None = None
    """Smallest L1 that may be set, MB."""
    max_size_mb: Annotated[float, Field(gt=0)] | None = None
    """Largest L1 that may be set, MB. Without it, L1 is never made larger than it is."""
    min_watermark: Share = 0.3
    """Lowest eviction watermark that may be set."""
    max_watermark: Share = 0.95
    """Highest eviction watermark that may be set."""
    min_ratio: Share = 0.02
    """Lowest eviction ratio that may be set."""
    max_ratio: Share = 0.6
    """Highest eviction ratio that may be set."""
    max_l2_size_mb: Annotated[float, Field(gt=0)] | None = None
    """Largest L2 that may be set, MB. Without it, no L2 adapter is made larger than it is."""
    l2_adapter: L2Adapter | None = None
    """An L2 adapter that may be added to a cache without one; none may be added otherwise. Its secrets are shown to nobody."""
    max_quotas_mb: Annotated[float, Field(gt=0)] | None = None
    """Largest sum of the tenants' quotas that may be set, MB. Without it, no quota is changed."""
    max_concurrent_users: Annotated[int, Field(gt=0)] | None = None
    """Most users (tenants) that may be asked for, or given a quota. Without it, any number may: LMCache itself sets no limit."""
    trial_mb: Annotated[float, Field(ge=0)] = 0.0
    """L1 memory that a trial may add, MB. Trials are changes of small expected gain that are undone unless they help."""
    allow_restart: bool = False
    """Whether a change may restart the cache process, which loses all of L1."""

    @model_validator(mode="after")
    def _ordered(self) -> "Bounds":
        for low, high in (("min_size_mb", "max_size_mb"), ("min_watermark", "max_watermark"), ("min_ratio", "max_ratio")):
            smallest, largest = getattr(self, low), getattr(self, high)
            if smallest is not None and largest is not None and smallest > largest:
                msg = f"{low} ({smallest:g}) is larger than {high} ({largest:g})"
                raise ValueError(msg)
        return self

    def violation(self, update: ConfigUpdate, current: CacheConfig) -> str | None:
        """Return the first way in which an update leaves the bounds, as one sentence, or ``None`` if it stays inside."""
        limits = (
            ("max_size_mb", self.min_size_mb, self.max_size_mb),
            ("eviction_watermark", self.min_watermark, self.max_watermark),
            ("eviction_ratio", self.min_ratio, self.max_ratio),
            ("max_concurrent_users", None, self.max_concurrent_users),
        )
        for setting, low, high in limits:
            wanted = getattr(update, setting)
            if wanted is not None and low is not None and wanted < low:
                return f"{setting}={wanted:g} is below the operator's bound of {low:g}"
            if wanted is not None and high is not None and wanted > high:
                return f"{setting}={wanted:g} is above the operator's bound of {high:g}"
        grows = update.max_size_mb is not None and current.max_size_mb is not None and update.max_size_mb > current.max_size_mb
        if grows and self.max_size_mb is None:
            return f"L1 may not grow beyond its {current.max_size_mb:g} MB: the operator's bounds name no max_size_mb"
        if update.tenant_quotas_mb is not None and (why := self._forbids_quotas(update.tenant_quotas_mb)) is not None:
            return why
        return None if update.l2_adapters is None else self._forbids_l2(update.l2_adapters, current.l2_adapters or ())

    def _forbids_quotas(self, quotas: Mapping[str, float]) -> str | None:
        if self.max_quotas_mb is None:
            return "tenants' quotas may not be changed: the operator's bounds name no max_quotas_mb"
        most, total = self.max_concurrent_users, sum(quotas.values())
        if most is not None and len(quotas) > most:
            return f"quotas for {len(quotas)} tenants are above the operator's bound of {most} (max_concurrent_users)"
        if total > self.max_quotas_mb:
            return f"quotas of {total:g} MB in all are above the operator's bound of {self.max_quotas_mb:g} (max_quotas_mb)"
        return None

    def _forbids_l2(self, wanted: Iterable[L2Adapter], present: Iterable[L2Adapter]) -> str | None:
        """Return why these L2 adapters may not be set, or ``None``.

        Each adapter that is present may stay once, and the operator's own may be added once if it is not present. If one of
        them grows, the sum of all capacities must stay within `max_l2_size_mb`.
        """
        own, there, left = self.l2_adapter, (*present,), [*present]
        may_add = own is not None and not any(one.same_store(own) for one in there)
        grows, total = False, 0.0
        for adapter in wanted:
            is_own = self._is_own(adapter)
            here = next((one for one in left if one.same_store(adapter)), None)
            if here is not None:
                left.remove(here)
                grows = grows or not (is_own or _fits(adapter, here))
            elif is_own and may_add:
                may_add = False
            else:
                return self._may_not_be_added(adapter, there)
            total += adapter.size_mb or (math.inf if here is not None and here.size_mb else 0.0)
        if grows and total > (self.max_l2_size_mb or 0):
            largest = max(self.max_l2_size_mb or 0, sum(one.size_mb or 0 for one in there))
            bound = "the operator's bound (max_l2_size_mb) or its present size"
            return f"L2 may not grow beyond {largest:g} MB in all, which is {bound}"
        return None

    def _is_own(self, adapter: L2Adapter) -> bool:
        return self.l2_adapter is not None and adapter in (self.l2_adapter, self.l2_adapter.masked)

    def _may_not_be_added(self, adapter: L2Adapter, present: Iterable[L2Adapter]) -> str:
        if self._is_own(adapter) or any(one.same_store(adapter) for one in present):
            return f"the same L2 adapter {plain(adapter.type)} may not be set more often than it is there"
        offered = "name none" if self.l2_adapter is None else f"name {self.l2_adapter.type} with its own settings"
        return f"an L2 adapter {plain(adapter.type)} may not be added: the operator's bounds {offered}"

    def revealed(self, update: ConfigUpdate) -> ConfigUpdate:
        """Return the update with the secrets of the operator's own L2 adapter: for LMCache only, never shown or stored."""
        own = self.l2_adapter
        if own is None or own.masked not in (update.l2_adapters or ()):
            return update
        adapters = tuple(own if one == own.masked else one for one in update.l2_adapters or ())
        return update.model_copy(update={"l2_adapters": adapters})

    def narrowed(self, other: "Bounds | None") -> "Bounds":
        """Return the bounds that allow what both allow. A run may narrow the operator's bounds, never widen them.

        Raises:
            OutOfBoundsError: Nothing is allowed by both.
        """
        if other is None:
            return self
        try:
            return Bounds(
                min_size_mb=max(self._given("min_size_mb", other), default=None),
                max_size_mb=None if self.max_size_mb is None else min(self._given("max_size_mb", other)),
                min_watermark=max(self.min_watermark, other.min_watermark),
                max_watermark=min(self.max_watermark, other.max_watermark),
                min_ratio=max(self.min_ratio, other.min_ratio),
                max_ratio=min(self.max_ratio, other.max_ratio),
                max_l2_size_mb=None if self.max_l2_size_mb is None else min(self._given("max_l2_size_mb", other)),
                max_quotas_mb=None if self.max_quotas_mb is None else min(self._given("max_quotas_mb", other)),
                max_concurrent_users=min(self._given("max_concurrent_users", other), default=None),
                trial_mb=min(self.trial_mb, other.trial_mb) if "trial_mb" in other.model_fields_set else self.trial_mb,
                l2_adapter=self.l2_adapter,
                allow_restart=self.allow_restart and other.allow_restart,
            )
        except ValidationError as error:
            why = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
        raise OutOfBoundsError(f"the bounds of this run lie outside the operator's: {why}; nothing was changed")

    def _given(self, name: str, other: "Bounds") -> list[Any]:
        return [value for value in (getattr(self, name), getattr(other, name)) if value is not None]


def _fits(adapter: L2Adapter, here: L2Adapter) -> bool:
    """Whether an adapter is no larger than the one it replaces."""
    if adapter.size_mb is None or here.size_mb is None:
        return adapter.size_mb == here.size_mb
    return adapter.size_mb <= here.size_mb
