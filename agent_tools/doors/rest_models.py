"""What callers of the REST door give and get, beyond the vocabulary in `models`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema, model_validator

from agent_tools.caches.registry import DEFAULT
from agent_tools.models import CacheConfig, ConfigUpdate, Support
from agent_tools.models.config import Frozen
from agent_tools.plain import refuse_halves

Seconds = Annotated[float, Field(gt=0, le=600)]


class Given(BaseModel):
    """What a caller gives: documented fields, unknown ones refused, so that a misspelt one is not taken for left out."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:  # noqa: ANN401  whatever the caller gave
        refuse_halves(given)
        return given


class WhichCache(Given):
    """Query of a route that needs no more than to know which cache."""

    cache: Annotated[str, Field(min_length=1, examples=["default"])] = DEFAULT
    """Name of the cache in the operator's directory; never an address."""


class OfWindow(WhichCache):
    """Query of a route about a window of time."""

    window_seconds: Annotated[Seconds | None, WithJsonSchema(TypeAdapter(Seconds).json_schema())] = None
    """Seconds to cover, ending now; the answer waits for what was not observed yet. Left out: all since the cache started."""


class OfHistory(WhichCache):
    """Query of the change log."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """At most so many records, the latest."""


class OfPage(WhichCache):
    """Query of the report page."""

    refresh: Annotated[int, Field(ge=0, le=3600)] = 30
    """Seconds after which the page reads the cache again; 0 keeps it as it is."""


class WithReason(WhichCache):
    """Query of a route that removes entries."""

    reason: Annotated[str, Field(max_length=500)] = ""
    """Why; goes into the change log."""


class ConfigRequest(Given):
    """Settings to change."""

    update: ConfigUpdate
    """Only the settings to change."""
    reason: Annotated[str, Field(min_length=3, max_length=500)]
    """Why: the figures that call for it. Goes into the change log."""
    dry_run: bool = False
    """True: answer with the plan, and change nothing."""
    fingerprint: str | None = None
    """That of the plan which a dry run answered with: refused if the cache has changed since."""


class OptimizeRequest(Given):
    """How far to empty a cache."""

    target_utilization_percent: Annotated[float, Field(gt=0, lt=100)] = 60.0
    """Least recently used entries are dropped until at most so much of L1 is used, percent."""
    reason: Annotated[str, Field(max_length=500)] = ""
    """Why; goes into the change log."""


class ConfigAnswer(Frozen):
    """The settings of a cache."""

    config: CacheConfig
    """As they are in force."""
    support: Mapping[str, Support]
    """For each setting, whether and how it can be changed."""
