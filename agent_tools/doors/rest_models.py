"""What callers of the REST door send and receive, beyond the vocabulary in `models`."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema, model_validator

from agent_tools.caches.registry import DEFAULT
from agent_tools.models import CacheConfig
from agent_tools.models.config import Frozen
from agent_tools.models.start_configuration import StartForm
from agent_tools.plain import refuse_halves

Seconds = Annotated[float, Field(gt=0, le=600)]
Memory = Annotated[float, Field(gt=0)]
Reason = Annotated[str, Field(max_length=500)]


def _text(given: Any) -> Any:  # noqa: ANN401  whatever the caller sent
    """Refuse strings that UTF-8 cannot hold."""
    refuse_halves(given)
    return given


SWITCHES = ("enabled", "enable_prefix_caching", "cache_warmup", "auto_eviction", "enable_sharing")
NUMBERS = ("max_size_mb", "min_prefix_length", "max_concurrent_users", "chunk_size", "eviction_watermark", "eviction_ratio")


def _typed(given: Any) -> Any:  # noqa: ANN401  whatever the caller sent
    """Refuse JSON of another type than documented, which Pydantic would convert: 0 for false, "20" for 20."""
    for name in given if isinstance(given, dict) else ():
        value = given[name]
        if (name in SWITCHES and not isinstance(value, bool | None)) or (name in NUMBERS and isinstance(value, bool | str)):
            msg = f"{name} has the wrong type"
            raise ValueError(msg)
    return _text(given)


WantedConfig = Annotated[CacheConfig, BeforeValidator(_typed)]
"""Any subset of the settings; a setting that is left out, or ``null``, stays as it is."""


class Given(BaseModel):
    """What a caller sends. Unknown fields are refused, so that a misspelt field does not pass for one that was left out."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:  # noqa: ANN401  whatever the caller sent
        return _text(given)


class WhichCache(Given):
    """Query of a route that needs only the name of a cache."""

    cache: Annotated[str, Field(min_length=1, examples=["default"])] = DEFAULT
    """Name of the cache in the operator's settings; never an address."""


class OfWindow(WhichCache):
    """Query of a route about a window of time."""

    window_seconds: Annotated[Seconds | None, WithJsonSchema(TypeAdapter(Seconds).json_schema())] = None
    """Length of the window that ends now, seconds. The answer waits for the part that was not observed yet. Without it, the
    window starts with the cache process."""


class OfComparison(Given):
    """Query of the comparison of caches."""

    cache: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=32)]
    """Names of caches that share one machine's memory; give the parameter once for each."""
    window_seconds: Annotated[Seconds | None, WithJsonSchema(TypeAdapter(Seconds).json_schema())] = None
    """Length of the window that ends now, seconds. Without it, the window starts with the last change, else the cache process."""
    budget_mb: Annotated[Memory | None, WithJsonSchema(TypeAdapter(Memory).json_schema())] = None
    """Memory to divide, MB. Without it, what these caches have now."""


class OfExport(WhichCache):
    """Query of the start-up configuration."""

    form: StartForm = StartForm.ARGS
    """``args`` or ``kubernetes`` for an `lmcache server`; ``env`` or ``yaml`` for in-process LMCache."""


class OfHistory(WhichCache):
    """Query of the change log."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """Return at most this many records, the latest."""


class OfVerification(Given):
    """Query of a verification."""

    cache: Annotated[str | None, Field(min_length=1), WithJsonSchema({"type": "string", "minLength": 1})] = None
    """Name of the cache. By default the change log names it."""
    verify_seconds: Seconds = 120.0
    """The most seconds to wait until the cache has seen as much traffic as before the change."""


class OfPage(WhichCache):
    """Query of the report page."""

    refresh: Annotated[int, Field(ge=0, le=3600)] = 30
    """Seconds after which the page reloads itself; 0 turns this off."""


class WithReason(WhichCache):
    """Query of a route that changes something."""

    reason: Reason = ""
    """Why; goes into the change log."""


class OfChange(WithReason):
    """Query of a change of settings."""

    dry_run: bool = False
    """Return the plan and change nothing."""
    fingerprint: str | None = None
    """Fingerprint of a plan that a dry run returned. The change is refused if the cache has changed since."""


class OptimizeRequest(Given):
    """How far to empty a cache."""

    target_utilization_percent: Annotated[float, Field(gt=0, lt=100)] = 60.0
    """Remove least recently used entries until at most this share of L1 is used, percent."""
    reason: Reason = ""
    """Why; goes into the change log."""


class VersionAnswer(Frozen):
    """Which LMCache answers."""

    lmcache_version: str | None
    """LMCache's version, e.g. ``0.5.6``. ``simulated`` if no LMCache runs; ``null`` if the cache does not report it."""
