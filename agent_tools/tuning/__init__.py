"""The LangGraph subgraphs that tune an LMCache, made to be embedded in other graphs."""
