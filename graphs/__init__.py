"""LangGraph graphs that tune an LMCache, made to be embedded."""
