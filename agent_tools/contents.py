"""The verbs about what a cache holds: list, warm, pin, drop. They change no setting; all others are in `operations`."""

from collections.abc import Sequence

from .caches.registry import DEFAULT, Registry
from .changes.actor import Actor
from .models import CacheEntry, CacheOptimizationResult, PinResult, WarmResult


class Contents:
    """Operations on what the caches of one directory hold."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.actor = Actor(self.registry.settings.state_folder)

    async def entries(self, cache: str = DEFAULT, limit: int = 20) -> Sequence[CacheEntry]:
        """The most used entries, at most so many.

        Raises:
            UnsupportedError: This cache cannot list them; says what would.
        """
        return await (await self.registry.find(cache)).deployment.entries(limit)

    async def warm(self, cache: str, model: str, tokens: Sequence[int], tenant: str = "") -> WarmResult:
        """Load a known prompt prefix from L2 into L1."""
        return await (await self.registry.find(cache)).deployment.warm(model, tokens, tenant)

    async def pin(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str, *, pinned: bool = True
    ) -> PinResult:
        """Keep a prompt prefix from being evicted, or (``pinned=False``) no longer; recorded in the change log."""
        named = await self.registry.find(cache)
        verb = "pin" if pinned else "unpin"

        async def pin() -> int:
            return await named.deployment.pin(model, tokens, tenant, pinned=pinned)

        chunks, record = await self.actor.carry_out(named, verb, actor, reason, pin)
        return PinResult(chunks=chunks, change_id=record.change_id, message=f"{verb}ned {chunks} chunks of {model}")

    async def optimize(
        self, cache: str, target_utilization_percent: float, actor: str, reason: str = ""
    ) -> CacheOptimizationResult:
        """Remove least recently used entries until at most so much of L1 is used."""
        named = await self.registry.find(cache)

        async def trim() -> None:
            total = (await named.deployment.snapshot()).l1_total_bytes
            await named.deployment.trim(int(total * target_utilization_percent / 100))

        return await self.actor.drop(named, "optimize", actor, reason, trim)

    async def clear(self, cache: str, actor: str, reason: str = "") -> CacheOptimizationResult:
        """Remove all that is in L1, except what requests hold locked. L2 is not touched."""
        named = await self.registry.find(cache)
        return await self.actor.drop(named, "clear", actor, reason, named.deployment.clear)

    async def delete_chunks(
        self, cache: str, model: str, chunk_hashes: Sequence[str], tenant: str, actor: str
    ) -> CacheOptimizationResult:
        """Remove chunks from L1 by their hash."""
        named = await self.registry.find(cache)

        async def delete() -> None:
            await named.deployment.delete(model, chunk_hashes, tenant)

        return await self.actor.drop(named, "delete", actor, f"{len(chunk_hashes)} chunks of {model}", delete)

    async def delete_prefix(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str
    ) -> CacheOptimizationResult:
        """Remove all chunks of a prompt prefix, given as token ids."""
        named = await self.registry.find(cache)

        deleted = 0

        async def delete() -> None:
            nonlocal deleted
            deleted = await named.deployment.delete_prefix(model, tokens, tenant)

        dropped = await self.actor.drop(named, "delete", actor, reason, delete)
        return dropped.model_copy(update={"message": f"{deleted} objects of the prefix were deleted; in L1: {dropped.message}"})
