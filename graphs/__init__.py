"""The LangGraph project that `langgraph.json` serves; the graphs themselves live in `agent_tools.tuning`."""
