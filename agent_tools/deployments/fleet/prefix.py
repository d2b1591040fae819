"""Warm, pin and delete one prompt prefix on all servers of a fleet."""

from collections.abc import Iterable, Mapping, Sequence

import anyio

from agent_tools.deployments.members import side_by_side
from agent_tools.deployments.quotas import check_salt
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.errors import OutcomeUnknownError, UnsupportedError
from agent_tools.models import WarmResult
from agent_tools.plain import plain

from .coordinator import Coordinator, Placement, Prefix
from .servers import as_one, done_on_all

POLL_SECONDS = 0.05
Servers = Mapping[str, ServerDeployment]


async def prefix_of(servers: Servers, model: str, tokens: Sequence[int], tenant: str) -> Prefix:
    """Return a prefix with the chunk size and world size that the servers report for its model.

    Raises:
        UnsupportedError: The prefix is shorter than a chunk, the tenant is not a cache salt, or the servers differ in the chunk
            size or in the model's world size.
    """
    if tenant:
        check_salt(tenant)
    answers, _ = await side_by_side({name: server.admin.read("/status") for name, server in servers.items()})
    chunk_sizes: set[int] = set()
    world_sizes: set[int] = set()
    for name, status in answers.items():
        with servers[name].admin.understood("/status"):
            chunk_sizes.add(status["chunk_size"])
            contexts = [*status.get("cache_context_meta", {}).values(), *status.get("non_cuda_context_meta", {}).values()]
            world_sizes |= {context["world_size"] for context in contexts if context["model_name"] == model}
    if len(chunk_sizes) > 1 or len(world_sizes) > 1:
        what = f"chunks of {_listed(chunk_sizes)} tokens, {plain(model)} on {_listed(world_sizes) or 1} workers"
        raise UnsupportedError(
            f"the servers of this fleet differ ({what}), so the prefix has other chunks on each; name a server as"
            " <fleet>/<server>. Nothing was changed"
        )
    chunk_size = next(iter(chunk_sizes), None)
    if not tokens or (chunk_size is not None and len(tokens) < chunk_size):
        raise UnsupportedError(
            f"a prefix of {len(tokens)} tokens is shorter than one chunk ({chunk_size or 256} tokens), so LMCache never stores"
            " it; give a longer prefix. Nothing was changed"
        )
    return Prefix(model, tuple(tokens), tenant, next(iter(world_sizes), 1), chunk_size)


async def pinned_or_not(coordinator: Coordinator, prefix: Prefix, *, pinned: bool) -> int:
    """Pin a prefix unless it is pinned, or remove a pin. Return how many chunks are pinned, or were unpinned."""
    chunks = (await _placements(coordinator, prefix)).keys()
    before = chunks & await coordinator.pinned(prefix)
    if (pinned and before == chunks) or (not pinned and not before):
        return len(before)
    await coordinator.pin(prefix, pinned=pinned)
    after = chunks & await coordinator.pinned(prefix)
    return len(after) if pinned else len(before - after)


async def deleted(coordinator: Coordinator, servers: Servers, prefix: Prefix) -> int:
    """Delete a prefix from every server, because the directory learns of a store only later. Return the number of chunks gone.

    Raises:
        UnsupportedError: All chunks are pinned.
        OutcomeUnknownError: A server did not delete the prefix.
    """
    placements = await _placements(coordinator, prefix)
    pinned = placements.keys() & await coordinator.pinned(prefix)
    free = placements.keys() - pinned
    if not free:
        raise UnsupportedError(f"all {len(pinned)} chunks of the prefix are pinned: unpin it first. Nothing was deleted")
    tiers = await _tiers(servers)
    counted = await done_on_all(
        "the prefix was deleted",
        {name: _deleted_on(coordinator, name, prefix, tier, len(free), len(pinned)) for name, tier in tiers.items()},
    )
    in_l1 = max(from_l1 for from_l1, _ in counted.values())
    known = sum(1 for chunk in free if placements[chunk])
    return max(min(max(in_l1, known), len(free)) - sum(locked for _, locked in counted.values()), 0)


async def _deleted_on(
    coordinator: Coordinator, server: str, prefix: Prefix, tier: str, free: int, pinned: int
) -> tuple[int, int]:
    """Return how many chunks are gone from L1, and how many stay because requests lock them."""
    done = await coordinator.delete(server, prefix, tier)
    if tier == "l1":
        return done.affected // prefix.world_size, -(-done.skipped // prefix.world_size)
    from_l1 = done.affected - free * prefix.world_size
    if from_l1 < 0:  # the coordinator does not relay that the server's L2 failed
        raise OutcomeUnknownError("its L2 could not delete the prefix; the prefix is gone from its L1. Check the storage of L2")
    return from_l1 // prefix.world_size, max(-(-done.skipped // prefix.world_size) - pinned, 0)


async def warmed(coordinator: Coordinator, servers: Servers, prefix: Prefix, patience: float) -> WarmResult:
    """Load a prefix from L2 into L1 of every server. The result names servers that failed; if all fail, raise the error."""
    answers, failures = await side_by_side({name: _warmed_on(coordinator, name, prefix, patience) for name in servers})
    if not answers:
        raise as_one(failures)
    done = [f"{name} has {found} of {asked} in L1" for name, (found, asked) in sorted(answers.items())]
    failed = [f"not on {name}: {error}" for name, error in sorted(failures.items())]
    return WarmResult(
        requested_chunks=sum(asked for _, asked in answers.values()),
        found_chunks=sum(found for found, _ in answers.values()),
        message=f"chunks of the prefix: {'; '.join((*done, *failed))}",
    )


async def _warmed_on(coordinator: Coordinator, server: str, prefix: Prefix, patience: float) -> tuple[int, int]:
    """Return the found and the requested chunks."""
    request_id = await coordinator.prefetch(server, prefix)
    if request_id is None:
        return 0, 0
    with anyio.move_on_after(patience):
        while True:
            done = await coordinator.prefetched(server, request_id)
            if done is not None:
                return done
            await anyio.sleep(POLL_SECONDS)
    raise OutcomeUnknownError(f"{server} has not loaded the prefix within {patience:g} s; it may still load it. Read the entries")


async def _placements(coordinator: Coordinator, prefix: Prefix) -> dict[str, list[Placement]]:
    """Return the copies of each chunk by hash, after checking that coordinator and servers cut the prefix alike."""
    placements = await coordinator.placements(prefix)
    if prefix.chunk_size is not None and len(placements) != len(prefix.tokens) // prefix.chunk_size:
        raise UnsupportedError(
            f"the coordinator cuts {len(prefix.tokens)} tokens into {len(placements)} chunks, but its servers cut them into"
            f" {len(prefix.tokens) // prefix.chunk_size}; start the coordinator with --chunk-size {prefix.chunk_size}."
            " Nothing was changed"
        )
    return placements


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
