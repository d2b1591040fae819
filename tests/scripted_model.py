"""A chat model that says its lines, so that agents are tested end to end without an LLM: all else is real."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import PrivateAttr

Line = AIMessage | Callable[[Sequence[BaseMessage]], AIMessage]
_IDS = count()


def call(name: str, **arguments: Any) -> AIMessage:
    """A line that calls one tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call-{next(_IDS)}"}])


class ScriptedChatModel(BaseChatModel):
    """Says its lines in order; a line may look at the conversation first. Remembers which tools it was offered."""

    script: list[Any]
    offered: list[str] = []
    heard: list[list[BaseMessage]] = []
    _said: int = PrivateAttr(0)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> BaseChatModel:  # type: ignore[override]
        self.offered = [convert_to_openai_tool(tool)["function"]["name"] for tool in tools]
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.heard.append(messages)
        line: Line = self.script[self._said]
        self._said += 1
        return ChatResult(generations=[ChatGeneration(message=line(messages) if callable(line) else line)])
