"""The parts of a tool: one operation, its arguments, its hints, and the text of its result."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent_tools.plain import refuse_halves

if TYPE_CHECKING:
    from agent_tools.operations import Operations as Operations  # noqa: PLC0414  for the tools beside this file
else:
    # Importing the operations takes long. Models only see the definitions of the tools, so the import waits for the first call.
    Operations = Any

MOST_CHARACTERS = 4000
"""The most characters of a tool's content. The artifact has everything."""


class Arguments(BaseModel):
    """Base class of all tool arguments. Every field is documented, and unknown fields are refused."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:  # noqa: ANN401  whatever the model gave
        refuse_halves(given)
        return given


class CacheArguments(Arguments):
    """The arguments of a tool that only needs the name of a cache."""

    cache: Annotated[str, Field(min_length=1, examples=["default"])] = "default"
    """Name of the cache in caches.toml; never an address."""


@dataclass(frozen=True)
class Hints:
    """The four MCP hints. All four are stated because MCP's defaults (destructive, open world) do not fit."""

    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool = False


@dataclass(frozen=True)
class ToolSpec:
    """The definition of one tool."""

    name: str
    """Name without prefix, e.g. ``get_status``."""
    title: str
    description: str
    """Text for the model: what the tool does, when to use it, what it costs."""
    arguments: type[Arguments]
    run: Callable[[Operations, Any], Awaitable[tuple[str, dict[str, Any]]]]
    """Function ``(operations, arguments) -> (content for the model, artifact as plain JSON)``."""
    hints: Hints


READ = Hints(read_only=True, destructive=False, idempotent=True)
CHANGE = Hints(read_only=False, destructive=True, idempotent=True)
