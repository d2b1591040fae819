"""What a tool is made of: one operation, its arguments, its hints, and how its result reads."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_tools.plain import refuse_halves

if TYPE_CHECKING:
    from agent_tools.operations import Operations as Operations  # noqa: PLC0414  for the tools beside this file
else:
    # Tools are defined by what a model sees of them. What they run on is imported when the first one is called: it takes long.
    Operations = Any

MOST_CHARACTERS = 4000
"""Bound of a tool's content; the artifact has everything."""


class Arguments(BaseModel):
    """Base of all tool arguments: documented fields, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:  # noqa: ANN401  whatever the model gave
        refuse_halves(given)
        return given


class CacheArguments(Arguments):
    """Arguments of a tool that needs no more than to know which cache."""

    cache: Annotated[str, Field(min_length=1, examples=["default"])] = "default"
    """Name of the cache in the operator's directory; never an address."""


@dataclass(frozen=True)
class Hints:
    """The four MCP hints; all stated, since MCP's defaults are not what one expects."""

    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool = False


@dataclass(frozen=True)
class ToolSpec:
    """One tool."""

    name: str
    """Without prefix, e.g. ``get_status``."""
    title: str
    description: str
    """For the model: what it does, when to use it, what it costs."""
    arguments: type[Arguments]
    run: Callable[[Operations, Any], Awaitable[tuple[str, dict[str, Any]]]]
    """(operations, arguments) -> (content for the model, artifact as plain JSON)."""
    hints: Hints


READ = Hints(read_only=True, destructive=False, idempotent=True)
CHANGE = Hints(read_only=False, destructive=True, idempotent=True)
