"""How the hot loops are compiled: by numba, when first called, with its disk cache where the file system allows one."""

import hashlib
import threading
from collections.abc import Callable
from functools import cache, update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MAKING = threading.Lock()


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` to machine code that runs without the GIL, so that settings can be tried in threads.

    Done at the first call: numba takes a fifth of a second to import, and who only reads a cache's status never needs it. The
    machine code is kept on disk (seconds saved in each new process). Where neither the package's folder nor the user's cache
    folder can be written, numba refuses to decorate at all; then each process compiles anew.
    """
    return Kernel(function)


class Kernel(Generic[P, R]):
    """A function that is machine code from its first call on, or from the first call of a kernel that calls it."""

    def __init__(self, function: Callable[P, R]) -> None:
        update_wrapper(self, function)
        self._function = function
        self._dispatcher: Any = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.dispatcher(*args, **kwargs)
        return result

    @property
    def dispatcher(self) -> Any:  # noqa: ANN401  numba's own, which has no types
        """Numba's, of which there is one however many threads come first."""
        with _MAKING:
            if self._dispatcher is None:
                self._dispatcher = _dispatcher(self._function)
        return self._dispatcher

    @property
    def _numba_type_(self) -> Any:  # noqa: ANN401
        """What numba asks any object for that it meets in a kernel: to another kernel, this one is its dispatcher."""
        return self.dispatcher._numba_type_


def _dispatcher(function: Callable[..., Any]) -> Any:  # noqa: ANN401
    import numba  # noqa: PLC0415  the point of this file

    # Numba takes a kernel from its cache as long as the kernel's own file is unchanged, whatever became of the kernels that it
    # calls from other files. So the cache goes by the sources of all of them: the name is part of its file's name.
    function.__qualname__ = f"{function.__qualname__}_{_sources(Path(function.__code__.co_filename).parent)}"
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available"
        return numba.njit(nogil=True)(function)


@cache
def _sources(folder: Path) -> str:
    """A short hash of every source file in a folder: kernels call kernels of their own folder only."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
