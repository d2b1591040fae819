"""The ready agent that `langgraph dev` serves."""

from agent_tools.cache_agent import cache_agent

__all__ = ["cache_agent"]
