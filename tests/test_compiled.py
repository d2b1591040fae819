"""Claims about the compiled loops: machine code from the first call on, with a cache on disk where there can be one."""

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numba
import pytest

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


def fresh() -> Callable[[int], int]:
    """A function with a cache file of the same name each time."""

    def double(x: int) -> int:
        return 2 * x

    return double


class Planted:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, int, bool]]:
        return os.makedirs, (str(self._folder), 0o700, True)


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o733])
def test_a_cache_that_others_can_write_is_not_read(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, ran = tmp_path / "numba", tmp_path / "ran"
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(cache))
    assert compiled(fresh())(21) == 42
    (index,) = cache.rglob("*.nbi")
    index.write_bytes(pickle.dumps(Planted(ran)))
    assert compiled(fresh())(21) == 42
    assert ran.is_dir(), "in a folder of ours it is read, so it would have run"
    ran.rmdir()
    index.write_bytes(pickle.dumps(Planted(ran)))
    cache.chmod(mode)
    assert compiled(fresh())(21) == 42
    assert not ran.exists()


def test_kernels_are_cached_under_the_sources_of_all_of_their_folder() -> None:
    assert isinstance(run_one_tier, Kernel)
    assert run_one_tier.dispatcher.__qualname__ == f"run_one_tier_{_sources(Path(one_tier.__file__).parent)}"
