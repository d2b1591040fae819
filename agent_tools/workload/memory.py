"""A check that a log fits into memory before it is read: the kernel kills a process that runs out of memory without a message."""

from collections.abc import Iterable
from pathlib import Path

from agent_tools.errors import WorkloadError

GB = 2**30
ZIPPED = 4.0
"""Bytes of text in a byte of gzip: about 2 for hashes, which hardly shrink, and 5 for the numbers of a trace."""
_MEMINFO = Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_fits(files: Iterable[Path], memory_per_byte: float) -> None:
    """Raise `WorkloadError` if reading these files would take more memory than is available.

    Args:
        files: The files to read, plain, gzip or zstd.
        memory_per_byte: Memory, in bytes, that the reader takes for each byte of text.
    """
    sizes = {file: file.stat().st_size * (ZIPPED if file.suffix in {".gz", ".zst"} else 1.0) for file in files if file.is_file()}
    needed, available = sum(sizes.values()) * memory_per_byte, available_bytes()
    if available is not None and needed > available:
        many = f"{len(sizes)} files" if len(sizes) > 1 else str(next(iter(sizes)))
        raise WorkloadError(
            f"{many} would take about {needed / GB:.1f} GB of memory, and {available / GB:.1f} GB are available: read fewer of"
            " the rotated files (the latest ones matter most), let the server keep fewer (--lookup-hash-log-max-files), or take a"
            " sample of a lookup log (`lmcache-agent predict --sample 0.01`)"
        )


def available_bytes() -> int | None:
    """Return the bytes of memory available now: what the kernel has, or what a container's limit leaves; ``None`` if unknown."""
    limits = [value for value in (kernel_available_bytes(), *map(_number, _LIMITS)) if value is not None]
    return min(limits, default=None)


def kernel_available_bytes() -> int | None:
    """Return what the kernel could give to a new process, whatever a container's limit is; ``None`` if it does not say."""
    if not _MEMINFO.exists():
        return None
    lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _number(file: Path) -> int | None:
    text = file.read_text(encoding="ascii").strip() if file.exists() else ""
    return int(text) if text.isdigit() else None
