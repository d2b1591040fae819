"""The compiled graph `tune_cache` that `langgraph dev` serves."""

from agent_tools.tuning.tune_cache import tune_cache

__all__ = ["tune_cache"]
