"""Shorter JSON schemas for models: every token of a tool's schema is read, and paid for, with every request."""

from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

LEFT_OUT = frozenset({"title", "default", "examples"})
ALWAYS_SO = frozenset({"enabled", "enable_prefix_caching", "cache_warmup", "enable_sharing"})
"""Settings that have one value in every LMCache, so that a model need not know them."""


class Compact:
    """Annotation of a settings argument: its schema without titles, defaults and the alternative ``null``.

    What is accepted stays the same. Settings that are the same in every LMCache are accepted and not shown.
    """

    def __init__(self, *, described: bool = True) -> None:
        self._described = described
        """False shows no settings at all, where another tool of the set describes them."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the schema in one piece."""
        schema = handler(core)
        if not self._described:
            return {"type": "object"}
        shown = self._short(handler, handler.resolve_ref_schema(schema))["properties"]
        return {"type": "object", "properties": {name: one for name, one in shown.items() if name not in ALWAYS_SO}}

    def _short(self, handler: GetJsonSchemaHandler, schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in schema:
            said = {key: value for key, value in schema.items() if key == "description"}
            schema = {**handler.resolve_ref_schema(schema), **said}
        kinds = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
        if len(kinds) == 1:
            inner = {key: value for key, value in self._short(handler, kinds[0]).items() if key != "description"}
            schema = {**inner, **{key: value for key, value in schema.items() if key != "anyOf"}}
        kept = {key: value for key, value in schema.items() if key not in LEFT_OUT}
        if "properties" in kept:
            kept["properties"] = {name: self._short(handler, one) for name, one in kept["properties"].items()}
        if isinstance(kept.get("additionalProperties"), bool):
            del kept["additionalProperties"]
        if isinstance(kept.get("items"), dict):
            kept["items"] = _without_texts(self._short(handler, kept["items"]))
        return kept


def _without_texts(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list's items without descriptions; the list's own says what they are."""
    kept = {key: value for key, value in schema.items() if key != "description"}
    if "properties" in kept:
        kept["properties"] = {name: _without_texts(one) for name, one in kept["properties"].items()}
    return kept
