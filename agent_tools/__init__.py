"""See, tune and verify an LMCache KV cache from an agent.

`LMCacheToolkit` gives the LangChain tools; `agent_tools.tuning.tune_cache` the LangGraph subgraph.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import LMCacheToolError
    from .operations import Operations
    from .tools.toolkit import LMCacheToolkit

__all__ = ["LMCacheToolError", "LMCacheToolkit", "Operations"]

_HOMES = {"LMCacheToolError": ".errors", "LMCacheToolkit": ".tools.toolkit", "Operations": ".operations"}


def __getattr__(name: str) -> Any:  # noqa: ANN401  PEP 562
    """Imported when asked for, so that `lmcache server` can load `agent_tools.server_module` without all the rest."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
