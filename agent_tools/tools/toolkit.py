"""All operations as LangChain tools, made in one place."""

from collections.abc import Callable
from typing import Any

from langchain_core.tools import BaseTool, BaseToolkit, StructuredTool, ToolException
from pydantic import ConfigDict, Field

from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations, shared_operations

from .act import ACT
from .observe import OBSERVE
from .predict import PREDICT
from .spec import MOST_CHARACTERS, ToolSpec

SPECS: tuple[ToolSpec, ...] = (*OBSERVE, *PREDICT, *ACT)


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

    def get_tools(self) -> list[BaseTool]:
        """The tools, reading ones first."""
        specs = [spec for spec in SPECS if spec.hints.read_only or not self.read_only]
        return [_tool(spec, self.prefix, lambda: self.operations or shared_operations()) for spec in specs]


def _tool(spec: ToolSpec, prefix: str, operations: Callable[[], Operations]) -> StructuredTool:
    async def call(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        content, artifact = await spec.run(operations(), spec.arguments(**arguments))
        return _bounded(content), artifact

    def sync(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return io_loop.run(call, arguments)

    async def asynchronous(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return await io_loop.arun(call, arguments)

    return StructuredTool.from_function(
        func=sync,
        coroutine=asynchronous,
        name=prefix + spec.name,
        description=spec.description.replace("lmcache_", prefix),
        args_schema=spec.arguments,
        response_format="content_and_artifact",
        handle_tool_error=_as_text,
        metadata={
            "title": spec.title,
            "readOnlyHint": spec.hints.read_only,
            "destructiveHint": spec.hints.destructive,
            "idempotentHint": spec.hints.idempotent,
            "openWorldHint": spec.hints.open_world,
        },
    )


def _as_text(error: ToolException) -> str:
    """Ours are for the model to act on; another tool exception is a bug in here."""
    if isinstance(error, LMCacheToolError):
        return f"{error.code}: {error}"
    raise error


def _bounded(content: str) -> str:
    if len(content) <= MOST_CHARACTERS:
        return content
    return content[: MOST_CHARACTERS - 40] + "\n... cut; the artifact has the rest"
