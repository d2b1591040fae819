"""Messages for a model whose tool arguments are wrong: one sentence names each wrong argument and what is allowed."""

from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent_tools.plain import MESSAGE, plain
from agent_tools.redaction import without_secrets

MOST_ERRORS = 3
"""The most wrong arguments named in one message."""
MOST_SHOWN = 60
"""The most characters shown of a wrong value."""


def describe_errors(error: ValidationError, arguments: type[BaseModel]) -> str:
    """Return a validation error of these arguments as one sentence."""
    found = [_describe(one, arguments) for one in error.errors(include_url=False, include_context=False)]
    rest = f"; and {len(found) - MOST_ERRORS} more" if len(found) > MOST_ERRORS else ""
    return plain(f"bad_arguments: {'; '.join(found[:MOST_ERRORS])}{rest}; nothing was done", MESSAGE)


def _describe(one: ErrorDetails, arguments: type[BaseModel]) -> str:
    where = ".".join(plain(part) for part in one["loc"]) or "the arguments"
    if one["type"] == "missing":
        return f"{where} is missing"
    if one["type"] == "extra_forbidden":
        return f"there is no argument {where}{_instead(one['loc'], arguments)}"
    if one["type"] == "value_error":
        return f"{where}: {one['msg'].removeprefix('Value error, ')}"
    shown = repr(without_secrets(one["input"], where))
    return f"{where}: {one['msg']}, not {shown if len(shown) <= MOST_SHOWN else shown[:MOST_SHOWN] + '...'}"


def _instead(loc: Sequence[int | str], arguments: type[BaseModel]) -> str:
    """Return the most similar argument name, or all names."""
    names = _names(arguments, loc[:-1])
    meant = get_close_matches(str(loc[-1]), names, n=1)
    if meant:
        return f", did you mean {meant[0]}"
    return f", only {', '.join(names)}" if names else ""


def _names(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the field names of the model that a path leads to; empty if the path leaves plain models."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
