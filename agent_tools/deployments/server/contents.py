"""Delete, look for and warm a prompt prefix on one `lmcache server`: on every KV rank, in every object group and tier.

LMCache 0.5.6 names an object by chunk hash, model, ``kv_rank`` (world size and rank), object group and cache salt. It passes over
a key that names nothing, so all objects that a chunk may have are named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import anyio

from agent_tools.errors import OutcomeUnknownError, RefusedError, UnsupportedError
from agent_tools.plain import plain
from agent_tools.wire.http_client import AdminClient, segment

DELETE_BATCH = 5000
"""Keys per ``DELETE /cache/objects``. LMCache accepts at most 10,000."""
MOST_GROUPS = 16
"""Object groups that are tried where nothing tells how many a model has."""
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Shape:
    """How engines store the chunks of one model on a server."""

    model: str
    world_sizes: tuple[int, ...]
    """World sizes with which engines registered the model."""
    groups: int | None = None
    """Its object groups; ``None``: not known."""


def known_shape(model: str, world_sizes: Mapping[str, set[int]], groups: Mapping[str, int], what: str) -> Shape:
    """Return the shape of a model.

    Raises:
        UnsupportedError: No engine has registered the model, so nothing tells its ranks.
    """
    sizes = world_sizes.get(model)
    if not sizes:
        known = ", ".join(map(plain, sorted(world_sizes))) or "none"
        raise UnsupportedError(
            f"no engine has registered the model {plain(model)} with this server (registered: {known}), so its world size is"
            " unknown and its chunks cannot be named. Start its engine, or start the server with --server-module"
            f" agent_tools.server_module, which remembers it. Nothing was {what}"
        )
    return Shape(model, tuple(sorted(sizes)), groups.get(model))


def kv_rank(world_size: int, rank: int) -> int:
    """Return LMCache's ``kv_rank`` (`ObjectKey.ComputeKVRank`): lookups count all ranks as local ones."""
    return world_size << 24 | rank << 16 | world_size << 8 | rank


async def delete_from_l1(admin: AdminClient, shape: Shape, hashes: Sequence[str], tenant: str) -> int:
    """Delete chunks from L1. Return how many chunks lost at least one object; objects that requests lock stay."""
    gone = 0
    for world_size in shape.world_sizes:
        by_part = []
        for group in range(shape.groups or MOST_GROUPS):
            of_group = [
                await _delete(admin, _keys(shape.model, hashes, kv_rank(world_size, rank), group, tenant), "l1")
                for rank in range(world_size)
            ]
            by_part += of_group
            if shape.groups is None and group and not any(of_group):
                break
        gone += max(by_part)
    return gone


async def delete_from_l2(admin: AdminClient, shape: Shape, hashes: Sequence[str], tenant: str) -> None:
    """Delete chunks from every L2 adapter that the API can name.

    LMCache 0.5.6 names an adapter by its type, and reaches only the first of a type. It does not count what an adapter deleted.

    Raises:
        OutcomeUnknownError: An adapter could not delete them.
    """
    answer = await admin.read("/config/adapters")
    with admin.understood("/config/adapters"):
        types = list(dict.fromkeys(str(one["type_name"]) for one in answer["adapters"] if one.get("tier") == "l2"))
    for adapter in types:
        for world_size in shape.world_sizes:
            for group in range(shape.groups or 2):
                for rank in range(world_size):
                    await _delete(admin, _keys(shape.model, hashes, kv_rank(world_size, rank), group, tenant), "l2", adapter)


def _keys(model: str, hashes: Sequence[str], rank: int, group: int, tenant: str) -> list[dict[str, object]]:
    return [
        {
            "chunk_hash_hex": chunk.removeprefix("0x"),
            "model_name": model,
            "kv_rank": rank,
            "object_group_id": group,
            "cache_salt": tenant,
        }
        for chunk in hashes
    ]


async def _delete(admin: AdminClient, keys: list[dict[str, object]], tier: str, adapter: str | None = None) -> int:
    deleted = 0
    for batch in _batches(keys):
        answer = await admin.change("DELETE", "/cache/objects", {"keys": batch, "tier": tier, "adapter": adapter})
        with admin.understood("/cache/objects"):
            if not answer["ok"]:
                raise OutcomeUnknownError(
                    f"the L2 adapter {plain(adapter)} could not delete the chunks ({plain(answer.get('error'))}), so they may"
                    " come back from there. Check the storage of L2, and delete again"
                )
            deleted += int(answer["deleted"])
    return deleted


def _batches(keys: list[dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    for start in range(0, len(keys), DELETE_BATCH):
        yield keys[start : start + DELETE_BATCH]


@dataclass(frozen=True)
class Found:
    """What a lookup of a prefix found, in L1 or L2. It loads what L2 has into L1, as the lookup of a request does."""

    chunks: int
    """Whole chunks of the prefix."""
    found: int
    """Chunks of which all objects were found, at most."""
    parts: int
    """Objects that were found."""


async def look_up(admin: AdminClient, shape: Shape, tokens: Sequence[int], tenant: str, patience: float) -> Found:
    """Look a prefix up on the server itself (``POST /cache/prefetches``), with each world size of its model.

    Raises:
        RefusedError: No engine of the model is registered now.
        UnsupportedError: There was no answer within `patience` seconds.
    """
    results = [await _look_up(admin, shape.model, size, tokens, tenant, patience) for size in shape.world_sizes]
    return Found(results[0].chunks, max(one.found for one in results), sum(one.parts for one in results))


async def _look_up(admin: AdminClient, model: str, world_size: int, tokens: Sequence[int], tenant: str, patience: float) -> Found:
    body = {"model_name": model, "world_size": world_size, "token_ids": list(tokens), "cache_salt": tenant}
    submitted = await admin.change("POST", "/cache/prefetches", body)
    with admin.understood("/cache/prefetches"):
        if submitted["status"] == "noop":
            return Found(0, 0, 0)
        request, chunks = segment(str(submitted["request_id"])), int(submitted["chunks"])
    with anyio.move_on_after(patience):
        while True:
            # LMCache reports the completion only once; another poll would get a 404.
            answer = await admin.read(f"/cache/prefetches/{request}")
            with admin.understood("/cache/prefetches"):
                if answer["status"] == "completed":
                    found, total = int(answer["found_keys"]), int(answer["total_keys"])
                    return Found(chunks, found * chunks // max(total, 1), found)
            await anyio.sleep(POLL_SECONDS)
    raise UnsupportedError(f"LMCache has not loaded the prefix within {patience:g} s; it may still load it")


async def still_found(
    admin: AdminClient, shape: Shape, tokens: Sequence[int], tenant: str, patience: float
) -> tuple[int | None, str]:
    """Return how many chunks of a prefix a lookup finds at least in part, or ``None`` and why that could not be checked."""
    try:
        result = await look_up(admin, shape, tokens, tenant, patience)
    except (RefusedError, UnsupportedError) as error:
        return None, str(error)
    return (min(max(result.found, 1), result.chunks) if result.parts else 0), ""
