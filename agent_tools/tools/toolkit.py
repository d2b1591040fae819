"""All operations as LangChain tools."""

import re
from importlib import import_module
from typing import Any

import anyio.to_thread
from langchain_core.tools import BaseTool, BaseToolkit, StructuredTool, ToolException
from pydantic import ConfigDict, PrivateAttr, ValidationError

from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.plain import printable
from agent_tools.tuning.person import Caller, caller, person

from .act import ACT
from .changes import CHANGES
from .compare import COMPARE
from .contents import CONTENTS
from .export import EXPORT
from .migrate import MIGRATE
from .observe import OBSERVE
from .on_demand import START, on_demand
from .predict import PREDICT
from .size import SIZES
from .spec import MOST_CHARACTERS, Operations, ToolSpec
from .tenants import TENANTS
from .tune import TUNE
from .wrong_arguments import describe_errors

SPECS: tuple[ToolSpec, ...] = (
    *OBSERVE,
    *EXPORT,
    *PREDICT,
    *SIZES,
    *MIGRATE,
    *CHANGES,
    *CONTENTS,
    *TENANTS,
    *COMPARE,
    *ACT,
    TUNE,
)


class LMCacheToolkit(BaseToolkit):
    """The LMCache tools for the caches of one caches.toml.

    Every tool works with ``invoke`` and ``ainvoke``, on any event loop. Its content is a short text for the model. Its artifact
    is the full result as plain JSON (call the tool with a ToolCall to get both). An error that a model can act on comes back as a
    tool message with ``status="error"``; a bug raises. ``tool.metadata`` holds the four MCP hints.

    A toolkit is composed: each of the methods below returns another toolkit and leaves this one as it is.

        agent = create_agent(model, LMCacheToolkit().read_only().get_tools())
    """

    model_config = ConfigDict(hide_input_in_errors=True, arbitrary_types_allowed=True, extra="forbid")

    operations: Operations | None = None
    """Operations on your own set of caches. Default: the caches of the operator's caches.toml, read when the first tool is
    called."""

    _specs: tuple[ToolSpec, ...] = PrivateAttr(default_factory=lambda: SPECS)
    _prefix: str = PrivateAttr(default="lmcache_")
    _approved: bool = PrivateAttr(default=False)
    _start: frozenset[str] | None = PrivateAttr(default=None)
    _deferred: frozenset[str] = PrivateAttr(default=frozenset())

    def read_only(self) -> "LMCacheToolkit":
        """Return only the tools that change nothing."""
        return self._with(_specs=tuple(spec for spec in self._specs if spec.hints.read_only))

    def only(self, *names: str) -> "LMCacheToolkit":
        """Return only these tools, by their names without prefix.

        Raises:
            ValueError: The toolkit has no tool of that name.
        """
        if unknown := set(names) - {spec.name for spec in self._specs}:
            known = ", ".join(spec.name for spec in self._specs)
            raise ValueError(f"this toolkit has no tool {', '.join(sorted(unknown))}; it has: {known}")
        return self._with(_specs=tuple(spec for spec in self._specs if spec.name in names))

    def prefixed(self, prefix: str) -> "LMCacheToolkit":
        """Return the tools with another prefix than ``lmcache_``. It keeps the names of several toolkits apart.

        Raises:
            ValueError: The prefix is not made of letters, digits, _ and -.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]*", prefix):
            raise ValueError("a prefix is made of letters, digits, _ and -")
        return self._with(_prefix=prefix)

    def requiring_approval(self) -> "LMCacheToolkit":
        """Return the tools for a host that asks a person before each call of a tool that changes something.

        The host asks by `interrupt_on`; the changes are recorded as approved by whoever answered. Tools cannot ask by
        themselves: an interrupt inside a tool would run its siblings twice.
        """
        return self._with(_approved=True)

    def on_demand(self, *start: str) -> "LMCacheToolkit":
        """Return a few tools to start with, and two or three that find and call the others.

        Args:
            start: Names without prefix of the tools to start with; by default the way from a question to a change and back.
        """
        return self._with(_start=frozenset(start) or START)

    def deferring(self, *start: str) -> "LMCacheToolkit":
        """Return all tools, those beyond `start` marked for the model provider's own tool search.

        ``tool.extras["defer_loading"]`` is read by Anthropic's API if the request has its tool search tool too.
        """
        kept = frozenset(start) or START
        return self._with(_deferred=frozenset(spec.name for spec in self._specs) - kept)

    def interrupt_on(self) -> dict[str, bool]:
        """Return the names of the tools that change something, for `HumanInTheLoopMiddleware` or a sub-agent of deepagents."""
        return {tool.name: True for tool in self.get_tools() if not (tool.metadata or {})["readOnlyHint"]}

    def get_tools(self) -> list[BaseTool]:
        """Return the tools, the reading ones first."""
        tools: list[BaseTool] = []
        for spec in self._specs:
            tool = _tool(spec, self._prefix, self.operations, approved=self._approved)
            tools.append(tool.model_copy(update={"extras": {"defer_loading": True}}) if spec.name in self._deferred else tool)
        return tools if self._start is None else on_demand(tools, self._prefix, self._start)

    def _with(self, **changed: Any) -> "LMCacheToolkit":  # noqa: ANN401  private attributes
        copy = self.model_copy()
        for name, value in changed.items():
            setattr(copy, name, value)
        return copy


class ToolFailure(ToolException):
    """An `LMCacheToolError` in the form that LangChain expects. The text starts with the error's code."""


async def _shared_operations() -> Operations:
    # Imported at the first call (see `spec`), and in a thread because an import may block the event loop.
    module = await anyio.to_thread.run_sync(import_module, "agent_tools.operations")
    shared: Operations = module.shared_operations()
    return shared


def _tool(spec: ToolSpec, prefix: str, operations: Operations | None, *, approved: bool) -> StructuredTool:
    asks = approved and not spec.hints.read_only

    async def call(arguments: dict[str, Any], who: Caller, approved_by: str | None) -> tuple[str, dict[str, Any]]:
        try:
            chosen = (operations or await _shared_operations()).called_by(who.name, who.program)
            if approved_by is not None:
                chosen = chosen.approved(approved_by)
            content, artifact = await spec.run(chosen, spec.arguments(**arguments))
        except LMCacheToolError as error:
            raise ToolFailure(f"{error.code}: {error}") from error
        return _bounded(content), artifact

    def sync(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return io_loop.run(call, arguments, caller(), person() if asks else None)

    async def asynchronous(**arguments: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
        return await io_loop.arun(call, arguments, caller(), person() if asks else None)

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
        tags=[f"lmcache:{spec.name}"],
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
