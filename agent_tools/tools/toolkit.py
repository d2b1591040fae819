"""All operations as LangChain tools."""

from importlib import import_module
from typing import Any

import anyio.to_thread
from langchain_core.tools import BaseTool, BaseToolkit, StructuredTool, ToolException
from pydantic import ConfigDict, Field, ValidationError

from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.plain import printable
from agent_tools.tuning.person import person

from .act import ACT
from .changes import CHANGES
from .contents import CONTENTS
from .observe import OBSERVE
from .predict import PREDICT
from .spec import MOST_CHARACTERS, Operations, ToolSpec
from .tenants import TENANTS
from .tune import TUNE
from .wrong_arguments import describe_errors

SPECS: tuple[ToolSpec, ...] = (*OBSERVE, *PREDICT, *CHANGES, *CONTENTS, *TENANTS, *ACT, TUNE)


class LMCacheToolkit(BaseToolkit):
    """The LMCache tools for the caches of one caches.toml.

    Every tool works with ``invoke`` and ``ainvoke``, on any event loop. Its content is a short text for the model. Its artifact
    is the full result as plain JSON (call the tool with a ToolCall to get both). An error that a model can act on comes back as a
    tool message with ``status="error"``; a bug raises. ``tool.metadata`` holds the four MCP hints.

        agent = create_agent(model, LMCacheToolkit(read_only=True).get_tools())
    """

    model_config = ConfigDict(hide_input_in_errors=True, arbitrary_types_allowed=True, extra="forbid")

    read_only: bool = False
    """True returns only the tools that change nothing."""
    prefix: str = Field(default="lmcache_", pattern=r"^[A-Za-z0-9_-]*$")
    """Prefix of every tool's name. It keeps the names of several toolkits apart."""
    operations: Operations | None = None
    """Operations on your own set of caches. Default: the caches of the operator's caches.toml, read when the first tool is
    called."""
    approved: bool = False
    """Whether the host asks a person before each call of a tool that changes something, as the ready agent does."""

    def get_tools(self) -> list[BaseTool]:
        """Return the tools, the reading ones first."""
        specs = [spec for spec in SPECS if spec.hints.read_only or not self.read_only]
        return [_tool(spec, self.prefix, self.operations, approved=self.approved) for spec in specs]


class ToolFailure(ToolException):
    """An `LMCacheToolError` in the form that LangChain expects. The text starts with the error's code."""


async def _shared_operations() -> Operations:
    # Imported at the first call (see `spec`), and in a thread because an import may block the event loop.
    module = await anyio.to_thread.run_sync(import_module, "agent_tools.operations")
    shared: Operations = module.shared_operations()
    return shared


def _tool(spec: ToolSpec, prefix: str, operations: Operations | None, *, approved: bool) -> StructuredTool:
    asks = approved and not spec.hints.read_only

    async def call(arguments: dict[str, Any], approved_by: str | None) -> tuple[str, dict[str, Any]]:
        try:
            chosen = operations or await _shared_operations()
            if approved_by is not None:
                chosen = chosen.approved(approved_by)
            content, artifact = await spec.run(chosen, spec.arguments(**arguments))
        except LMCacheToolError as error:
            raise ToolFailure(f"{error.code}: {error}") from error
        return _bounded(content), artifact

    def sync(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return io_loop.run(call, arguments, person() if asks else None)

    async def asynchronous(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return await io_loop.arun(call, arguments, person() if asks else None)

    def wrong_arguments(error: Exception) -> str:
        """Describe wrong arguments to the model. Any other model that does not validate is a bug of ours and raises."""
        if isinstance(error, ValidationError) and error.title == spec.arguments.__name__:
            return describe_errors(error, spec.arguments)
        raise error

    return StructuredTool.from_function(
        func=sync,
        coroutine=asynchronous,
        name=prefix + spec.name,
        description=spec.description.replace("lmcache_", prefix),
        args_schema=spec.arguments,
        response_format="content_and_artifact",
        handle_tool_error=_as_text,
        handle_validation_error=wrong_arguments,
        metadata={
            "title": spec.title,
            "readOnlyHint": spec.hints.read_only,
            "destructiveHint": spec.hints.destructive,
            "idempotentHint": spec.hints.idempotent,
            "openWorldHint": spec.hints.open_world,
        },
    )


def _as_text(error: ToolException) -> str:
    """Return the text of our own errors for the model. Any other tool exception is a bug of ours and raises."""
    if isinstance(error, ToolFailure):
        return str(error)
    raise error


def _bounded(content: str) -> str:
    content = printable(content)
    if len(content) <= MOST_CHARACTERS:
        return content
    return content[: MOST_CHARACTERS - 40] + "\n... cut; the artifact has the rest"
