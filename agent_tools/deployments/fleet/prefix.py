"""Warm, pin and delete one prompt prefix on all servers of a fleet."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import anyio

from agent_tools.deployments.members import side_by_side
from agent_tools.deployments.quotas import check_salt
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.errors import OutcomeUnknownError, UnsupportedError
from agent_tools.models import WarmResult
from agent_tools.plain import plain

from .coordinator import Chunk, Coordinator, Prefix
from .servers import as_one, done_on_all

POLL_SECONDS = 0.05
Servers = Mapping[str, ServerDeployment]


async def prefixes_of(coordinator: Coordinator, servers: Servers, model: str, tokens: Sequence[int], tenant: str) -> list[Prefix]:
    """Return a prefix for each world size with which the fleet stores the model: the same text has other chunks in each.

    World sizes come from the servers, which know the engines that are registered now, and from the keys in the coordinator's
    directory, since chunks outlive their engines. A directory that is too long to read is left out if a server knows the model.

    Raises:
        UnsupportedError: The prefix is shorter than a chunk, the tenant is not a cache salt, the servers differ in the chunk
            size, or nothing tells the model's world size.
    """
    if tenant:
        check_salt(tenant)
    sizes, (answers, _) = await asyncio.gather(
        side_by_side({name: server.world_sizes() for name, server in servers.items()}),
        side_by_side({name: server.admin.read("/status") for name, server in servers.items()}),
    )
    chunk_sizes: set[int] = set()
    for name, status in answers.items():
        with servers[name].admin.understood("/status"):
            chunk_sizes.add(status["chunk_size"])
    if len(chunk_sizes) > 1:
        raise UnsupportedError(
            f"the servers of this fleet differ (chunks of {_listed(chunk_sizes)} tokens), so the prefix has other chunks on each;"
            " name a server as <fleet>/<server>. Nothing was changed"
        )
    chunk_size = next(iter(chunk_sizes), None)
    if not tokens or (chunk_size is not None and len(tokens) < chunk_size):
        raise UnsupportedError(
            f"a prefix of {len(tokens)} tokens is shorter than one chunk ({chunk_size or 256} tokens), so LMCache never stores"
            " it; give a longer prefix. Nothing was changed"
        )
    world_sizes = {size for one in sizes[0].values() for size in one.get(model, ())}
    try:
        world_sizes |= await coordinator.world_sizes(model)
    except UnsupportedError:
        if not world_sizes:
            raise
    if not world_sizes:
        raise UnsupportedError(
            f"no engine has registered the model {plain(model)} with a server of this fleet, and the coordinator knows no chunk"
            " of it, so its world size is unknown and its chunks cannot be named. Start its engine. Nothing was changed"
        )
    return [Prefix(model, tuple(tokens), tenant, size, chunk_size) for size in sorted(world_sizes)]


async def pinned_or_not(coordinator: Coordinator, prefixes: Sequence[Prefix], *, pinned: bool) -> int:
    """Pin prefixes unless they are pinned, or remove a pin. Return how many chunks are pinned, or were unpinned."""
    return max([await _pinned_or_not(coordinator, prefix, pinned=pinned) for prefix in prefixes])


async def _pinned_or_not(coordinator: Coordinator, prefix: Prefix, *, pinned: bool) -> int:
    chunks = (await _chunks(coordinator, prefix)).keys()
    before = chunks & await coordinator.pinned(prefix)
    if (pinned and before == chunks) or (not pinned and not before):
        return len(before)
    await coordinator.pin(prefix, pinned=pinned)
    after = chunks & await coordinator.pinned(prefix)
    return len(after) if pinned else len(before - after)


async def deleted(coordinator: Coordinator, servers: Servers, prefixes: Sequence[Prefix]) -> int:
    """Delete prefixes from every server, because the directory learns of a store only later. Return the number of chunks gone.

    Raises:
        UnsupportedError: All chunks are pinned.
        OutcomeUnknownError: A server did not delete a prefix.
    """
    found = [(prefix, await _chunks(coordinator, prefix), await coordinator.pinned(prefix)) for prefix in prefixes]
    if all(chunks.keys() <= pinned for _, chunks, pinned in found):
        pinned_chunks = max(len(chunks) for _, chunks, _ in found)
        raise UnsupportedError(f"all {pinned_chunks} chunks of the prefix are pinned: unpin it first. Nothing was deleted")
    tiers, gone = await _tiers(servers), 0
    for prefix, chunks, pinned in found:
        free = [chunk for name, chunk in chunks.items() if name not in pinned]
        if free:
            gone += await _deleted(coordinator, tiers, prefix, free, [chunks[name] for name in chunks.keys() & pinned])
    return gone


async def _deleted(
    coordinator: Coordinator, tiers: Mapping[str, str], prefix: Prefix, free: Sequence[Chunk], pinned: Sequence[Chunk]
) -> int:
    """Delete the chunks of a prefix that are free, and not those that are pinned. Return the number of chunks gone."""
    counted = await done_on_all(
        "the prefix was deleted",
        {name: _deleted_on(coordinator, name, prefix, tier, free, pinned) for name, tier in tiers.items()},
    )
    in_l1 = max(from_l1 for from_l1, _ in counted.values())
    known = sum(1 for chunk in free if chunk.copies)
    return max(min(max(in_l1, known), len(free)) - sum(locked for _, locked in counted.values()), 0)


async def _deleted_on(
    coordinator: Coordinator, server: str, prefix: Prefix, tier: str, free: Sequence[Chunk], pinned: Sequence[Chunk]
) -> tuple[int, int]:
    """Return how many chunks are gone from L1, and how many stay because requests lock them."""
    done = await coordinator.delete(server, prefix, tier)
    keys, of_each = sum(chunk.keys for chunk in free), max(chunk.keys for chunk in free)  # what is not stored has fewer
    from_l1, locked = done.affected, done.skipped
    if tier == "all":
        from_l1, locked = from_l1 - keys, max(locked - sum(chunk.keys for chunk in pinned), 0)
    if from_l1 < 0:  # the coordinator does not relay that the server's L2 failed
        raise OutcomeUnknownError("its L2 could not delete the prefix; the prefix is gone from its L1. Check the storage of L2")
    return from_l1 // of_each, -(-locked // of_each)


async def warmed(coordinator: Coordinator, servers: Servers, prefixes: Sequence[Prefix], patience: float) -> WarmResult:
    """Load prefixes from L2 into L1 of every server. The result names servers that failed; if all fail, raise the error."""
    answers, failures = await side_by_side({name: _warmed_on(coordinator, name, prefixes, patience) for name in servers})
    if not answers:
        raise as_one(failures)
    done = [f"{name} has {found} of {asked} in L1" for name, (found, asked) in sorted(answers.items())]
    failed = [f"not on {name}: {error}" for name, error in sorted(failures.items())]
    return WarmResult(
        requested_chunks=sum(asked for _, asked in answers.values()),
        found_chunks=sum(found for found, _ in answers.values()),
        message=f"chunks of the prefix: {'; '.join((*done, *failed))}",
    )


async def _warmed_on(coordinator: Coordinator, server: str, prefixes: Sequence[Prefix], patience: float) -> tuple[int, int]:
    """Return the found and the requested chunks, for the world size of which the server found most.

    A server loads only what an engine of that world size has registered there. It fails if that is none.
    """
    answers, failures = await side_by_side(
        {f"world size {p.world_size}": _loaded(coordinator, server, p, patience) for p in prefixes}
    )
    if not answers:
        raise next(iter(failures.values()))
    return max(answers.values())


async def _loaded(coordinator: Coordinator, server: str, prefix: Prefix, patience: float) -> tuple[int, int]:
    """Return the found and the requested chunks. The coordinator counts keys: a chunk has one for each rank and group."""
    request_id = await coordinator.prefetch(server, prefix)
    if request_id is None:
        return 0, 0
    with anyio.move_on_after(patience):
        while True:
            done = await coordinator.prefetched(server, request_id)
            if done is not None:
                found, asked = done
                chunks = len(prefix.tokens) // prefix.chunk_size if prefix.chunk_size else asked // prefix.world_size
                return found * chunks // max(asked, 1), chunks
            await anyio.sleep(POLL_SECONDS)
    raise OutcomeUnknownError(f"{server} has not loaded the prefix within {patience:g} s; it may still load it. Read the entries")


async def _chunks(coordinator: Coordinator, prefix: Prefix) -> dict[str, Chunk]:
    """Return the chunks of a prefix by hash, after checking that coordinator and servers cut the prefix alike."""
    chunks = await coordinator.chunks(prefix)
    if prefix.chunk_size is not None and len(chunks) != len(prefix.tokens) // prefix.chunk_size:
        raise UnsupportedError(
            f"the coordinator cuts {len(prefix.tokens)} tokens into {len(chunks)} chunks, but its servers cut them into"
            f" {len(prefix.tokens) // prefix.chunk_size}; start the coordinator with --chunk-size {prefix.chunk_size}."
            " Nothing was changed"
        )
    return chunks


async def _tiers(servers: Servers) -> dict[str, str]:
    """Return the tier to delete from on each server: ``all``, or ``l1`` on a server without L2.

    A server without L2 refuses ``all``, but only after it has deleted the prefix from L1. A server that does not answer gets
    ``l1``; the deletion then fails too.
    """
    answers, failures = await side_by_side({name: server.admin.read("/status") for name, server in servers.items()})
    tiers = dict.fromkeys(failures, "l1")
    for name, status in answers.items():
        with servers[name].admin.understood("/status"):
            tiers[name] = "all" if status["storage_manager"]["l2_adapters"] else "l1"
    return tiers


def _listed(values: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(values)))
