"""Who runs a graph, calls a tool or answers a question, as far as the host knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from langchain_core.runnables.config import ensure_config

from agent_tools.caches.named_tokens import UNNAMED

UNKNOWN = "a person"
"""Stands for somebody whom the host of the graph does not authenticate."""


def person() -> str:
    """Return who started or resumed the current run.

    LangGraph's server puts the identity of the caller there, and lets no caller choose it. Call this in the run's own context.
    """
    return str(ensure_config().get("configurable", {}).get("langgraph_auth_user_id") or UNKNOWN)


@dataclass(frozen=True)
class Caller:
    """Who calls a tool."""

    name: str | None
    """The name that a door authenticated."""
    program: str | None = None
    """What the caller's program calls itself."""


_caller: ContextVar[Caller | None] = ContextVar("lmcache_caller", default=None)


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Say who calls the tools inside. Only a door that authenticated the caller may use this."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def caller() -> Caller:
    """Return who calls: as a door of ours says, else whom the host of the graph authenticated."""
    return _caller.get() or Caller(authenticated(person()))


def authenticated(who: str) -> str | None:
    """Return the name of a person whom the host authenticated, else ``None``."""
    return None if who in UNNAMED else who
