"""How the hot loops are compiled: numba, with its disk cache where the file system allows one."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` to machine code that runs without the GIL, so that settings can be tried in threads.

    The machine code is kept on disk (seconds saved in each new process). Where neither the package's folder nor the user's cache
    folder can be written, numba refuses to decorate at all; then each process compiles anew.
    """
    # Numba takes a kernel from its cache as long as the kernel's own file is unchanged, whatever became of the kernels that it
    # calls from other files. So the cache goes by the sources of all of them: the name is part of its file's name.
    function.__qualname__ = f"{function.__qualname__}_{_sources()}"
    try:
        kernel: Callable[P, R] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available"
        kernel = numba.njit(nogil=True)(function)
    return kernel


@cache
def _sources() -> str:
    """A short hash of every source file in this folder."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
