"""Compilation of the hot loops: numba compiles them at the first call and caches the result on disk if it can."""

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from functools import cache, update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MAKING = threading.Lock()


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that numba compiles at its first call and that then runs without the GIL, so threads can try settings.

    Numba takes a fifth of a second to import, and a caller that only reads a cache's status never needs it. The machine code is
    cached on disk, which saves seconds in each new process. If neither the package's folder nor the user's cache folder is
    writable, or if other users can write to the one that numba would use, each process compiles again.
    """
    return Kernel(function)


class Kernel(Generic[P, R]):
    """A function that is compiled at its first call, or at the first call of a kernel that calls it."""

    def __init__(self, function: Callable[P, R]) -> None:
        update_wrapper(self, function)
        self._function = function
        self._dispatcher: Any = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.dispatcher(*args, **kwargs)
        return result

    @property
    def dispatcher(self) -> Any:  # noqa: ANN401  numba's dispatchers have no types
        """Return the numba dispatcher. There is only one, even if several threads ask first."""
        with _MAKING:
            if self._dispatcher is None:
                self._dispatcher = _dispatcher(self._function)
        return self._dispatcher

    @property
    def _numba_type_(self) -> Any:  # noqa: ANN401
        """Return the type that numba asks for when another kernel calls this one: the type of the dispatcher."""
        return self.dispatcher._numba_type_


def _dispatcher(function: Callable[..., Any]) -> Any:  # noqa: ANN401
    import numba  # noqa: PLC0415  imported late, on purpose

    # Numba reuses a cached kernel as long as the kernel's own file is unchanged, even if kernels that it calls from other files
    # have changed. So the name of the cache file holds a hash of all sources in the folder.
    function.__qualname__ = f"{function.__qualname__}_{_sources(Path(function.__code__.co_filename).parent)}"
    try:
        dispatcher = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available"
        return numba.njit(nogil=True)(function)
    return dispatcher if _is_safe(Path(dispatcher.stats.cache_path), function) else numba.njit(nogil=True)(function)


def _is_safe(folder: Path, function: Callable[..., Any]) -> bool:
    """Return whether only we and root can put files into a cache folder. Numba unpickles what lies there, which can run any code.

    The folder beside the source is safe as it is: Python itself runs the byte code that lies there.
    """
    if folder == Path(function.__code__.co_filename).resolve().parent / "__pycache__":
        return True
    while not folder.exists():  # numba makes it when it first writes
        folder = folder.parent
    return all(_is_ours(place, last=place == folder) for place in (folder.resolve(), *folder.resolve().parents))


def _is_ours(place: Path, *, last: bool) -> bool:
    found = place.stat()
    own_group = found.st_gid == found.st_uid  # by custom the group of that user alone
    writers = found.st_mode & (stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP)
    return found.st_uid in {0, os.geteuid()} and (not writers or (not last and bool(found.st_mode & stat.S_ISVTX)))


@cache
def _sources(folder: Path) -> str:
    """Return a short hash of all source files in a folder. Kernels only call kernels of their own folder."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
