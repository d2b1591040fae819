"""The tools for the contents of a cache: list entries, and warm, pin or delete a known prompt prefix."""

from typing import Annotated, Any

from pydantic import Field

from agent_tools.models import CacheEntry
from agent_tools.plain import plain

from .act import ACTOR, ReasonArguments
from .spec import CHANGE, READ, CacheArguments, Hints, Operations, ToolSpec

MOST_PLACES = 20
"""The most servers named for one entry."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class EntriesArguments(CacheArguments):
    """How many entries to list."""

    limit: Annotated[int, Field(ge=1, le=200)] = 20
    """List at most this many entries, the most used first."""


class PrefixArguments(ReasonArguments):
    """A prompt prefix of one model and tenant."""

    model: Annotated[str, Field(min_length=1, examples=["meta-llama/Llama-3.1-8B-Instruct"])]
    """The model's name as the engine reports it to LMCache (see `by_model` of lmcache_get_metrics)."""
    token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
    """The prefix as token ids of this model's tokenizer. Only whole chunks count."""
    tenant: Annotated[str, Field(max_length=128)] = ""
    """The cache salt of the tenant's requests. Empty: requests without a salt."""


class PinArguments(PrefixArguments):
    """A prompt prefix, and whether to pin it."""

    pinned: bool = True
    """true: protect the prefix from eviction. false: remove the protection."""


async def list_entries(operations: Operations, arguments: EntriesArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_list_entries`. The artifact is ``{"entries": [CacheEntry, ...]}``."""
    entries = await operations.entries(arguments.cache, arguments.limit)
    content = "\n".join(map(describe_entry, entries)) or f"{arguments.cache} holds no entries"
    return content, {"entries": [entry.model_dump(mode="json") for entry in entries]}


async def warm_prefix(operations: Operations, arguments: PrefixArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_warm_prefix`. The artifact is a `WarmResult`."""
    one = arguments
    warmed = await operations.warm(one.cache, one.model, one.token_ids, one.tenant, ACTOR, one.reason)
    return warmed.message, warmed.model_dump(mode="json")


async def delete_prefix(operations: Operations, arguments: PrefixArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_delete_prefix`. The artifact is a `CacheOptimizationResult`."""
    one = arguments
    deleted = await operations.delete_prefix(one.cache, one.model, one.token_ids, one.tenant, ACTOR, one.reason)
    return deleted.message, deleted.model_dump(mode="json")


async def pin_prefix(operations: Operations, arguments: PinArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_pin_prefix`. The artifact is a `PinResult`."""
    one = arguments
    pinned = await operations.pin(one.cache, one.model, one.token_ids, one.tenant, ACTOR, one.reason, pinned=one.pinned)
    return pinned.message, pinned.model_dump(mode="json")


def describe_entry(entry: CacheEntry) -> str:
    """Return an entry as one line."""
    parts = [
        f"{entry.hit_count} hits" if entry.hit_count is not None else None,
        f"{entry.token_count} tokens" if entry.token_count is not None else None,
        f"{entry.size_mb:.3g} MB" if entry.size_mb is not None else None,
        f"last used {entry.last_accessed:%Y-%m-%d %H:%M:%S} UTC" if entry.last_accessed is not None else None,
        f"in {', '.join(map(plain, entry.placements[:MOST_PLACES]))}" if entry.placements else None,
    ]
    return f"{plain(entry.prefix_hash[:16])}: {', '.join(part for part in parts if part)}"


CONTENTS = (
    ToolSpec(
        name="list_entries",
        title="Most used entries",
        description="List the most used chunks of a cache with hits, size and last use; for a fleet also the servers that hold"
        " them.",
        arguments=EntriesArguments,
        run=list_entries,
        hints=READ,
    ),
    ToolSpec(
        name="warm_prefix",
        title="Warm a prompt prefix",
        description="Load a known prompt prefix, given as token ids, from L2 into L1 before requests ask for it.",
        arguments=PrefixArguments,
        run=warm_prefix,
        hints=Hints(read_only=False, destructive=False, idempotent=True),
    ),
    ToolSpec(
        name="delete_prefix",
        title="Delete a prompt prefix",
        description="Remove a prompt prefix, given as token ids, from L1 and L2 of a cache, e.g. one that must not be served any"
        " more, and check by a lookup that it is gone. Its requests are computed again. This cannot be undone.",
        arguments=PrefixArguments,
        run=delete_prefix,
        hints=CHANGE,
    ),
    ToolSpec(
        name="pin_prefix",
        title="Pin a prompt prefix",
        description="Protect a prompt prefix, given as token ids, from eviction in a fleet; pinned=false removes the protection."
        " Needs LMCache's coordinator. Pinned chunks take room from everything else.",
        arguments=PinArguments,
        run=pin_prefix,
        hints=Hints(read_only=False, destructive=False, idempotent=True),
    ),
)
