"""See, tune and verify an LMCache KV cache from an agent.

`LMCacheToolkit` gives the LangChain tools; `graphs.tune_cache` (the other package of this distribution) the LangGraph subgraph.
"""

from .errors import LMCacheToolError
from .operations import Operations
from .tools.toolkit import LMCacheToolkit

__all__ = ["LMCacheToolError", "LMCacheToolkit", "Operations"]
