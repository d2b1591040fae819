"""Who runs a graph or answers its question, as far as its host knows."""

from langchain_core.runnables.config import ensure_config

UNKNOWN = "a person"
"""Stands for somebody whom the host of the graph does not authenticate."""


def person() -> str:
    """Return who started or resumed the current run.

    LangGraph's server puts the identity of the caller there, and lets no caller choose it. Call this in the run's own context.
    """
    return str(ensure_config().get("configurable", {}).get("langgraph_auth_user_id") or UNKNOWN)
