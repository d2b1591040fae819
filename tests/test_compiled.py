"""Claims about the compiled loops: machine code from the first call on, with a cache on disk where there can be one."""

import threading
from pathlib import Path

import numba

from agent_tools.compiled import Kernel, _sources, compiled
from agent_tools.prediction import one_tier
from agent_tools.prediction.one_tier import run_one_tier


def double(x: int) -> int:
    return 2 * x


def test_kernels_call_kernels() -> None:
    twice = compiled(double)

    @compiled
    def fourfold(x: int) -> int:
        return twice(twice(x))

    assert fourfold(21) == 84


def test_a_kernel_is_made_once_though_many_threads_ask_first() -> None:
    kernel, seen = Kernel(double), set()
    threads = [threading.Thread(target=lambda: seen.add(id(kernel.dispatcher))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
    assert isinstance(kernel.dispatcher, numba.core.dispatcher.Dispatcher)


def test_a_function_that_numba_cannot_cache_is_compiled_all_the_same() -> None:
    made_up: dict[str, object] = {}
    exec("def double(x):\n    return 2 * x", made_up)  # noqa: S102 - a function without a file, as in a read-only installation
    assert compiled(made_up["double"])(21) == 42  # type: ignore[arg-type]


def test_kernels_are_cached_under_the_sources_of_all_of_their_folder() -> None:
    assert isinstance(run_one_tier, Kernel)
    assert run_one_tier.dispatcher.__qualname__ == f"run_one_tier_{_sources(Path(one_tier.__file__).parent)}"
