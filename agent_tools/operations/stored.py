"""The verbs that change what is stored: remove, warm, pin."""

from collections.abc import Sequence

from agent_tools.errors import OutcomeUnknownError
from agent_tools.models import CacheOptimizationResult, PinResult, WarmResult
from agent_tools.models.rights import Right
from agent_tools.plain import plain

from .core import Core


class Stored(Core):
    """Everything that changes what is stored."""

    async def optimize(
        self, cache: str, target_utilization_percent: float, actor: str, reason: str = ""
    ) -> CacheOptimizationResult:
        """Remove least recently used entries until at most `target_utilization_percent` of L1 is used."""
        named = await self._changeable(cache, Right.CLEAR)

        async def trim() -> None:
            total = (await named.deployment.snapshot()).l1_total_bytes
            await named.deployment.trim(int(total * target_utilization_percent / 100))

        return await self.actor.drop(named, "optimize", self._who(actor), reason, trim)

    async def clear(self, cache: str, actor: str, reason: str = "") -> CacheOptimizationResult:
        """Remove everything from L1 except what requests hold locked. L2 is not touched."""
        named = await self._changeable(cache, Right.CLEAR)
        return await self.actor.drop(named, "clear", self._who(actor), reason, named.deployment.clear)

    async def delete_chunks(
        self, cache: str, model: str, chunk_hashes: Sequence[str], tenant: str, actor: str
    ) -> CacheOptimizationResult:
        """Remove chunks from L1 by their hash. A result with ``success=False`` says that no such chunk was there."""
        named = await self._changeable(cache, Right.CLEAR)
        deleted = 0

        async def delete() -> None:
            nonlocal deleted
            deleted = await named.deployment.delete(model, chunk_hashes, tenant)

        dropped = await self.actor.drop(
            named, "delete", self._who(actor), f"{len(chunk_hashes)} chunks of {plain(model)}", delete
        )
        return dropped.model_copy(update={"success": deleted > 0, "message": f"{deleted} chunks were deleted from L1"})

    async def delete_prefix(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str
    ) -> CacheOptimizationResult:
        """Remove all chunks of a prompt prefix, given as token ids, from L1 and L2, and look whether they are gone.

        A result with ``success=False`` says that nothing of the prefix was there.

        Raises:
            OutcomeUnknownError: A lookup still finds the prefix.
        """
        named = await self._changeable(cache, Right.CLEAR)
        message, deleted = "", 0

        async def delete() -> None:
            nonlocal message, deleted
            deleted = await named.deployment.delete_prefix(model, tokens, tenant)
            found, why = await named.deployment.still_found(model, tokens, tenant)
            if found:
                raise OutcomeUnknownError(
                    f"{deleted} chunks of the prefix were deleted, and a lookup still finds {found}: requests lock them, store"
                    " them again, or an L2 adapter kept them. Delete again when no request uses the prefix"
                )
            what = f"{deleted} chunks of the prefix were deleted" if deleted else "nothing of the prefix was in L1"
            unchecked = f"whether a lookup still finds it could not be checked ({why})"
            message = f"{what}; " + (unchecked if found is None else "a lookup no longer finds it, in any tier")

        dropped = await self.actor.drop(named, "delete", self._who(actor), reason, delete)
        return dropped.model_copy(update={"success": deleted > 0, "message": message})

    async def warm(self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str = "") -> WarmResult:
        """Load a known prompt prefix from L2 into L1. Recorded in the change log, since it takes room from other entries."""
        named = await self._changeable(cache)

        async def warm() -> WarmResult:
            return await named.deployment.warm(model, tokens, tenant)

        warmed, record = await self.actor.carry_out(named, "warm", self._who(actor), reason, warm)
        return warmed.model_copy(update={"change_id": record.change_id})

    async def pin(
        self, cache: str, model: str, tokens: Sequence[int], tenant: str, actor: str, reason: str, *, pinned: bool = True
    ) -> PinResult:
        """Protect a prompt prefix from eviction, or with ``pinned=False`` end the protection. Recorded in the change log."""
        named = await self._changeable(cache)
        verb = "pin" if pinned else "unpin"

        async def pin() -> int:
            return await named.deployment.pin(model, tokens, tenant, pinned=pinned)

        chunks, record = await self.actor.carry_out(named, verb, self._who(actor), reason, pin)
        return PinResult(chunks=chunks, change_id=record.change_id, message=f"{verb}ned {chunks} chunks of {plain(model)}")
