"""The compiled graph `tune_fleet` that `langgraph dev` serves."""

from agent_tools.tuning.tune_fleet import tune_fleet

__all__ = ["tune_fleet"]
