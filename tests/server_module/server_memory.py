"""Loaded by a server beside the module: GET ``/memory`` tells the memory in use, and what freed memory malloc still holds."""

import ctypes
import gc
import os
import re
import sys
import tempfile
from typing import Any

MB = 2**20


class MallocInfo(ctypes.Structure):
    """Of glibc, ``struct mallinfo2``, summed over all its arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks mapped usmblks fsmblks used free keepcost".split()  # noqa: SIM905
    ]


def build_server_modules(_: Any) -> None:
    from agent_tools.server_module.module import _http_app  # noqa: PLC0415  others only ask `memory`

    _http_app().add_api_route("/memory", memory, methods=["GET"])


def memory(trim: bool = False) -> dict[str, float]:
    """MB in use and resident; after `trim`, which gives the system the whole free pages of malloc back."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if trim:
        libc.malloc_trim(0)
    libc.mallinfo2.restype = MallocInfo
    malloc = libc.mallinfo2()
    malloc_bytes, python = malloc.used + malloc.mapped, python_bytes()
    return {
        "in_use_mb": (malloc_bytes + python) / MB,
        "malloc_mb": malloc_bytes / MB,
        "python_mb": python / MB,
        "malloc_free_mb": malloc.free / MB,
        "resident_mb": resident_bytes() / MB,
    }


def python_bytes() -> int:
    """Bytes of the objects that Python allocates itself, 512 bytes or less each; it tells them on stderr only."""
    with tempfile.TemporaryFile("w+") as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        found = re.search(r"# bytes in allocated blocks\s*=\s*([\d,]+)", file.read())
    assert found, "Python runs with another allocator than its own"
    return int(found[1].replace(",", ""))


def resident_bytes() -> int:
    """Without what is mapped from files, L1's arenas among them."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
