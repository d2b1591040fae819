"""All operations as LangChain tools, made in one place."""

from importlib import import_module
from typing import Any

import anyio.to_thread
from langchain_core.tools import BaseTool, BaseToolkit, StructuredTool, ToolException
from pydantic import ConfigDict, Field, ValidationError, field_validator

from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.plain import printable

from .act import ACT
from .changes import CHANGES
from .contents import CONTENTS
from .observe import OBSERVE
from .predict import PREDICT
from .spec import MOST_CHARACTERS, Operations, ToolSpec
from .tenants import TENANTS
from .wrong_arguments import told

SPECS: tuple[ToolSpec, ...] = (*OBSERVE, *PREDICT, *CHANGES, *CONTENTS, *TENANTS, *ACT)


class LMCacheToolkit(BaseToolkit):
    """The LMCache tools of one directory of caches.

    Every tool works with ``invoke`` and ``ainvoke``, on any event loop. Its content is one short text for the model; its artifact
    the result as plain JSON (call it with a ToolCall to get both). Errors a model can act on come back as tool messages with
    ``status="error"``; bugs raise. The four MCP hints stand in ``tool.metadata``.

        agent = create_agent(model, LMCacheToolkit(read_only=True).get_tools())
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    read_only: bool = False
    """Only the tools that change nothing."""
    prefix: str = Field(default="lmcache_", pattern=r"^[A-Za-z0-9_-]*$")
    """Put before every name, so that tools of several toolkits do not shadow each other."""
    operations: Operations | None = None
    """Operations on your own directory of caches; the operator's by default, read when the first tool is called."""
    more: tuple[ToolSpec, ...] = ()
    """Further tools, such as `agent_tools.tools.tune.TUNE`."""

    @field_validator("more")
    @classmethod
    def _names_are_new(cls, more: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
        names = [spec.name for spec in (*SPECS, *more)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:  # a tool node would keep the last one and say nothing
            msg = f"there would be two tools named {', '.join(twice)}; give yours another name"
            raise ValueError(msg)
        return more

    def get_tools(self) -> list[BaseTool]:
        """The tools, reading ones first."""
        specs = [spec for spec in (*SPECS, *self.more) if spec.hints.read_only or not self.read_only]
        return [_tool(spec, self.prefix, self.operations) for spec in specs]


class ToolFailure(ToolException):
    """An `LMCacheToolError` as LangChain expects it; the text starts with the error's code."""


async def _shared_operations() -> Operations:
    # Imported now (see `spec`) and in a thread, since an import may do what must not be done on an event loop.
    module = await anyio.to_thread.run_sync(import_module, "agent_tools.operations")
    shared: Operations = module.shared_operations()
    return shared


def _tool(spec: ToolSpec, prefix: str, operations: Operations | None) -> StructuredTool:
    async def call(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        try:
            content, artifact = await spec.run(operations or await _shared_operations(), spec.arguments(**arguments))
        except LMCacheToolError as error:
            raise ToolFailure(f"{error.code}: {error}") from error
        return _bounded(content), artifact

    def sync(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return io_loop.run(call, arguments)

    async def asynchronous(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return await io_loop.arun(call, arguments)

    def wrong_arguments(error: Exception) -> str:
        """The arguments are the model's to correct; any other model that does not validate is a bug in here."""
        if isinstance(error, ValidationError) and error.title == spec.arguments.__name__:
            return told(error, spec.arguments)
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
    """Hand the text of our own errors to the model; any other tool exception is a bug in here."""
    if isinstance(error, ToolFailure):
        return str(error)
    raise error


def _bounded(content: str) -> str:
    content = printable(content)
    if len(content) <= MOST_CHARACTERS:
        return content
    return content[: MOST_CHARACTERS - 40] + "\n... cut; the artifact has the rest"
