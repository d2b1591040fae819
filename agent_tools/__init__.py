"""See, tune and verify an LMCache KV cache from an agent, a graph or a script.

This module is the public face of the package; everything else may move.

A script or a notebook:

* `LMCacheClient`: one cache, synchronous.
* `Operations`: every operation on the caches of the operator's directory, async.
  `Registry` and `Settings` make an own directory: ``Operations(Registry(Settings(caches=...)))``.

An agent:

* `LMCacheToolkit`: the operations as typed LangChain tools, ``LMCacheToolkit().get_tools()``.
* `build_cache_agent`: a ready agent that has these tools (extra ``agent``).

A LangGraph host:

* `tune_cache`, `tune_fleet`: the compiled subgraphs. `build_tune_cache` and `build_tune_fleet` return the graphs uncompiled, for
  an own checkpointer or own `Operations`. `tune_node` makes a node with the state keys of the host.
* `TuneContext`, `FleetContext`: the settings of a run. `TuneReport`, `FleetReport`: its result.

The vocabulary (Pydantic models):

* `CacheStatus`, `CacheMetrics`, `CacheConfig`, `ConfigUpdate`, `EvictionPolicy`, `LMCacheStatus`: how a cache does and is set.
* `OptimizationRecommendation`, `CacheOptimizationResult`, `Bounds`, `Mode`: what is advised, done and allowed.
* `LMCacheToolError`: the base of all errors that a caller can act on; `agent_tools.errors` lists them.

Each name is imported when it is first used (PEP 562), so ``import agent_tools`` costs nothing.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache_agent import build_cache_agent
    from .caches.registry import Registry
    from .caches.settings import Settings
    from .client import LMCacheClient
    from .errors import LMCacheToolError
    from .models import (
        Bounds,
        CacheConfig,
        CacheMetrics,
        CacheOptimizationResult,
        CacheStatus,
        ConfigUpdate,
        EvictionPolicy,
        LMCacheStatus,
        Mode,
        OptimizationRecommendation,
    )
    from .operations import Operations
    from .tools.toolkit import LMCacheToolkit
    from .tuning.fleet_state import FleetContext, FleetReport
    from .tuning.state import TuneContext, TuneReport
    from .tuning.tune_cache import build_tune_cache, tune_cache, tune_node
    from .tuning.tune_fleet import build_tune_fleet, tune_fleet

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False):
    # `python -m agent_tools...` is starting. Python put the working directory first; other modules must not come from there.
    del sys.path[0]

__all__ = [
    "Bounds",
    "CacheConfig",
    "CacheMetrics",
    "CacheOptimizationResult",
    "CacheStatus",
    "ConfigUpdate",
    "EvictionPolicy",
    "FleetContext",
    "FleetReport",
    "LMCacheClient",
    "LMCacheStatus",
    "LMCacheToolError",
    "LMCacheToolkit",
    "Mode",
    "Operations",
    "OptimizationRecommendation",
    "Registry",
    "Settings",
    "TuneContext",
    "TuneReport",
    "build_cache_agent",
    "build_tune_cache",
    "build_tune_fleet",
    "tune_cache",
    "tune_fleet",
    "tune_node",
]

_HOMES = {
    "FleetContext": ".tuning.fleet_state",
    "FleetReport": ".tuning.fleet_state",
    "LMCacheClient": ".client",
    "LMCacheToolError": ".errors",
    "LMCacheToolkit": ".tools.toolkit",
    "Operations": ".operations",
    "Registry": ".caches.registry",
    "Settings": ".caches.settings",
    "TuneContext": ".tuning.state",
    "TuneReport": ".tuning.state",
    "build_cache_agent": ".cache_agent",
    "build_tune_cache": ".tuning.tune_cache",
    "build_tune_fleet": ".tuning.tune_fleet",
    "tune_cache": ".tuning.tune_cache",
    "tune_fleet": ".tuning.tune_fleet",
    "tune_node": ".tuning.tune_cache",
}
"""The module of each public name that is not in `models`."""


def __getattr__(name: str) -> Any:  # noqa: ANN401  PEP 562
    """Import a public name when it is first used; `lmcache server` loads `agent_tools.server_module` without all the rest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, ".models"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those that were not imported yet."""
    return sorted({*globals(), *__all__})
