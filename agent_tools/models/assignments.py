"""Settings as a person types them: ``NAME=VALUE``."""

import json
from collections.abc import Iterable
from typing import Any

from .config import ConfigUpdate


def update_of(assignments: Iterable[str]) -> ConfigUpdate:
    """Return the update that assignments like ``max_size_mb=2048`` ask for.

    A value is JSON where it can be read as JSON, otherwise text.

    Raises:
        pydantic.ValidationError: There is no such setting, or the value does not fit it.
    """
    pairs = (assignment.partition("=") for assignment in assignments)
    return ConfigUpdate.model_validate({name: _value(value) for name, _, value in pairs})


def _value(text: str) -> Any:  # noqa: ANN401  any JSON
    try:
        return json.loads(text)
    except ValueError:
        return text
