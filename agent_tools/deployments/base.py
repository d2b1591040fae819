"""The `Deployment` protocol: the calls that every kind of LMCache deployment answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent_tools.models import CacheConfig, CacheEntry, ConfigUpdate, Support, TenantUsage, WarmResult
from agent_tools.workload.access_log import AccessLog

from .snapshot import Snapshot

Progress = Callable[[str], None]
"""A callback that gets one short sentence for each step of a long operation."""


def silent(_: str) -> None:
    """Ignore progress."""


class Deployment(Protocol):
    """One LMCache. All methods are async and run on the I/O loop. All errors are `LMCacheToolError`.

    If a deployment cannot do something, it raises `UnsupportedError` with the reason and the alternative. It never silently
    accepts such a call.
    """

    backend: str
    """The kind of deployment, e.g. ``lmcache server`` or ``embedded``."""
    owned: bool
    """Whether we may restart the cache process."""

    async def snapshot(self) -> Snapshot:
        """Return the counters since the process started, and the present sizes."""
        ...

    async def version(self) -> str | None:
        """Return LMCache's version, or ``None`` if it is unknown."""
        ...

    async def config(self) -> CacheConfig:
        """Return the settings in force."""
        ...

    async def support(self, update: ConfigUpdate | None = None) -> Mapping[str, Support]:
        """Return for every setting how it can be changed. With an update, return how it can be changed to these values."""
        ...

    async def apply(self, update: ConfigUpdate, progress: Progress) -> None:
        """Change settings. Return when LMCache has accepted them.

        Raises:
            UnsupportedError: This deployment cannot change a setting. Nothing was changed.
            OutcomeUnknownError: The request was sent, but the answer did not show its outcome.
            CacheDiedError: The cache process ended during the change.
        """
        ...

    async def restart_command(self, update: ConfigUpdate | None) -> str | None:
        """Return the command line that starts this cache with the update, or as it is now without one.

        ``None`` means that there is no such command.
        """
        ...

    async def entries(self, limit: int) -> Sequence[CacheEntry]:
        """Return at most `limit` stored entries."""
        ...

    async def clear(self) -> None:
        """Remove all entries from L1, except entries that requests lock."""
        ...

    async def trim(self, max_used_bytes: int) -> None:
        """Remove the least recently used entries until L1 holds at most `max_used_bytes`."""
        ...

    async def delete(self, model: str, chunk_hashes: Sequence[str], tenant: str) -> int:
        """Remove chunks from L1 by their chained hash (hexadecimal). Return the number of chunks, not of their objects."""
        ...

    async def warm(self, model: str, tokens: Sequence[int], tenant: str) -> WarmResult:
        """Load a prompt prefix, given as token ids, from L2 into L1."""
        ...

    async def delete_prefix(self, model: str, tokens: Sequence[int], tenant: str) -> int:
        """Remove all chunks of a prompt prefix, given as token ids. Return the number of removed chunks."""
        ...

    async def still_found(self, model: str, tokens: Sequence[int], tenant: str) -> tuple[int | None, str]:
        """Return how many chunks of a prefix a lookup finds now, or ``None`` and why that could not be checked."""
        ...

    async def pin(self, model: str, tokens: Sequence[int], tenant: str, *, pinned: bool) -> int:
        """Pin or unpin the chunks of a prompt prefix; pinned chunks are not evicted. Return the number of these chunks."""
        ...

    async def tenants(self) -> Mapping[str, TenantUsage]:
        """Return the space that each tenant uses, by cache salt (``""`` for requests without one)."""
        ...

    async def access_log(self, since: float | None = None) -> AccessLog | None:
        """Return the lookups since a Unix time in seconds, or ``None`` if there is no access log."""
        ...

    async def close(self) -> None:
        """Close all connections, and stop all processes that we started."""
        ...
