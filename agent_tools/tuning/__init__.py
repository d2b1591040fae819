"""LangGraph subgraphs that tune an LMCache. Other graphs can embed them."""
