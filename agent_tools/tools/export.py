"""The tool that writes the settings in force as start-up configuration."""

import re
from typing import Any

from agent_tools.models.start_configuration import StartForm
from agent_tools.plain import NAME, plain

from .spec import READ, CacheArguments, Operations, ToolSpec

_LONG = re.compile(rf"[^\s\"',{{}}:]{{{NAME + 1},}}")
CUT = "values of more than 128 characters are cut here; `lmcache-agent export` prints them whole"


class ExportArguments(CacheArguments):
    """A cache, and the form wanted."""

    form: StartForm = StartForm.ARGS
    """args or kubernetes for an `lmcache server`; env or yaml for LMCache inside an engine."""


async def export_config(operations: Operations, arguments: ExportArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_export_config`. The artifact is a `StartConfiguration`."""
    found = await operations.export(arguments.cache, arguments.form)
    if _LONG.search(found.text):  # a server or client chose it, and a model reads it
        short = _LONG.sub(lambda word: plain(word.group()), found.text)
        found = found.model_copy(update={"text": short, "notes": (*found.notes, CUT)})
    return "\n".join([found.text.rstrip(), *(f"note: {note}" for note in found.notes)]), found.model_dump(mode="json")


EXPORT = (
    ToolSpec(
        name="export_config",
        title="Export settings as start-up configuration",
        description="Write the settings in force as start-up configuration, for the operator to keep: a change made live is gone"
        " with the next restart otherwise.",
        arguments=ExportArguments,
        run=export_config,
        hints=READ,
    ),
)
