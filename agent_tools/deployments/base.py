"""What every LMCache can be asked, whatever it is: the `Deployment` protocol."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent_tools.models import CacheConfig, CacheEntry, ConfigUpdate, Support, TenantUsage, WarmResult
from agent_tools.workload.access_log import AccessLog

from .snapshot import Snapshot

Progress = Callable[[str], None]
"""Called with one short sentence per step of a long operation."""


def silent(_: str) -> None:
    """Ignore progress."""


class Deployment(Protocol):
    """One LMCache. All methods are async and run on the I/O loop; all errors are `LMCacheToolError`.

    What a deployment cannot do raises `UnsupportedError` with the reason and the alternative; it is never silently accepted.
    """

    backend: str
    """What answers: ``lmcache server``, ``embedded`` ..."""
    owned: bool
    """Whether we may restart the cache process ourselves."""

    async def snapshot(self) -> Snapshot:
        """Counters since the process started and sizes now."""
        ...

    async def version(self) -> str | None:
        """LMCache's version."""
        ...

    async def config(self) -> CacheConfig:
        """The settings in force now."""
        ...

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """For every setting, whether it can be changed; with an update, whether it can be changed to those values."""
        ...

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change settings; returns when LMCache has accepted them.

        Raises:
            UnsupportedError: A setting cannot be changed here; nothing was changed.
            OutcomeUnknownError: Sent, but no clear answer came.
            CacheDiedError: The process ended in the middle.
        """
        ...

    async def restart_command(self, update: ConfigUpdate) -> str | None:
        """The command line that starts this cache with the update; ``None`` where there is no such command."""
        ...

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """Stored entries, at most `limit`."""
        ...

    async def clear(self) -> None:
        """Remove all that is in L1, except what requests hold locked."""
        ...

    async def trim(self, max_used_bytes: int) -> None:
        """Remove least recently used entries until L1 holds at most so many bytes."""
        ...

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """Remove chunks from L1 by their chained hash (hexadecimal); returns how many were removed."""
        ...

    async def warm(self, model: str, tokens: Sequence[int], tenant: str) -> WarmResult:
        """Load a known prompt prefix from L2 into L1."""
        ...

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:
        """Remove all chunks of a prompt prefix, given as token ids; returns how many were removed."""
        ...

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:
        """Keep the chunks of a prompt prefix from being evicted, or no longer; returns how many chunks that is."""
        ...

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """What each tenant (cache salt, ``""`` for none) occupies."""
        ...

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """The lookups since a Unix time; ``None`` where the deployment keeps no log."""
        ...

    async def close(self) -> None:
        """Release connections; stop what we started."""
        ...
