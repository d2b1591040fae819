"""Kernels are compiled with a cache on disk where there can be one."""

import importlib

from agent_tools.prediction import compiled as room
from agent_tools.prediction.compiled import compiled


def test_a_function_that_numba_cannot_cache_is_compiled_all_the_same() -> None:
    made_up: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", made_up)  # noqa: S102 - a function without a file, as in a read-only installation
    assert compiled(made_up["double"])(21) == 42  # type: ignore[arg-type]


def test_kernels_are_cached_under_the_sources_of_all_of_them() -> None:
    server_model = importlib.import_module("agent_tools.prediction.one_tier")
    assert server_model.run_one_tier.__qualname__.endswith(room._sources())
