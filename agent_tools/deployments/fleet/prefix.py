"""One prompt prefix on all servers of a fleet: found by its tokens, warmed, pinned, deleted."""

from collections.abc import Iterable, Mapping, Sequence

import anyio

from agent_tools.deployments.members import side_by_side
from agent_tools.deployments.quotas import check_salt
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.errors import OutcomeUnknownError, UnsupportedError
from agent_tools.models import WarmResult

from .coordinator import Coordinator, Placement, Prefix
from .servers import as_one, done_on_all

POLL_SECONDS = 0.05
Servers = Mapping[str, ServerDeployment]


async def prefix_of(servers: Servers, model: str, tokens: Sequence[int], tenant: str) -> Prefix:
    """A prefix with what the servers know of its model.

    Raises:
        UnsupportedError: It is shorter than a chunk, or the tenant's name is no cache salt, or servers differ in the chunk size
            or the model's world size.
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
        what = f"chunks of {_listed(chunk_sizes)} tokens, {model} on {_listed(world_sizes) or 1} workers"
        raise UnsupportedError(
            f"the servers of this fleet differ ({what}), so a prefix is not the same chunks on all; name one as <fleet>/<server>."
            " Nothing was changed"
        )
    chunk_size = next(iter(chunk_sizes), None)
    if not tokens or (chunk_size is not None and len(tokens) < chunk_size):
        raise UnsupportedError(
            f"a prefix of {len(tokens)} tokens is shorter than one chunk ({chunk_size or 256} tokens): nothing is stored of it."
            " Nothing was changed"
        )
    return Prefix(model, tuple(tokens), tenant, next(iter(world_sizes), 1), chunk_size)


async def pinned_or_not(coordinator: Coordinator, prefix: Prefix, *, pinned: bool) -> int:
    """Pin a prefix unless it is, or take a pin off; how many chunks are pinned now, or were set free."""
    chunks = (await _placements(coordinator, prefix)).keys()
    before = chunks & await coordinator.pinned(prefix)
    if (pinned and before == chunks) or (not pinned and not before):
        return len(before)
    await coordinator.pin(prefix, pinned=pinned)
    after = chunks & await coordinator.pinned(prefix)
    return len(after) if pinned else len(before - after)


async def deleted(coordinator: Coordinator, servers: Servers, prefix: Prefix) -> int:
    """Delete a prefix from every server, since the directory learns of a store only after a while; how many chunks are gone.

    Raises:
        UnsupportedError: All of it is pinned.
        OutcomeUnknownError: One of the servers did not delete it.
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
    """(chunks that are gone from L1, chunks that stay since requests hold them locked)."""
    done = await coordinator.delete(server, prefix, tier)
    if tier == "l1":
        return done.affected // prefix.world_size, -(-done.skipped // prefix.world_size)
    from_l1 = done.affected - free * prefix.world_size
    if from_l1 < 0:  # the coordinator does not pass on the server's word that its L2 failed
        raise OutcomeUnknownError("its L2 could not delete the prefix; what is in its L1 is gone")
    return from_l1 // prefix.world_size, max(-(-done.skipped // prefix.world_size) - pinned, 0)


async def warmed(coordinator: Coordinator, servers: Servers, prefix: Prefix, patience: float) -> WarmResult:
    """Load a prefix from L2 into L1 of every server; a server that cannot is named, unless none can."""
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
    """(found, asked for)."""
    request_id = await coordinator.prefetch(server, prefix)
    if request_id is None:
        return 0, 0
    with anyio.move_on_after(patience):
        while True:
            done = await coordinator.prefetched(server, request_id)
            if done is not None:
                return done
            await anyio.sleep(POLL_SECONDS)
    raise OutcomeUnknownError(f"{server} had not loaded the prefix after {patience:g} s; it may still do so")


async def _placements(coordinator: Coordinator, prefix: Prefix) -> dict[str, list[Placement]]:
    """Where each chunk is, by hash; checked against what the servers would make of the prefix."""
    placements = await coordinator.placements(prefix)
    if prefix.chunk_size is not None and len(placements) != len(prefix.tokens) // prefix.chunk_size:
        raise UnsupportedError(
            f"the coordinator finds {len(placements)} chunks in {len(prefix.tokens)} tokens, its servers, whose chunks have"
            f" {prefix.chunk_size}, {len(prefix.tokens) // prefix.chunk_size}: start it with --chunk-size {prefix.chunk_size}."
            " Nothing was changed"
        )
    return placements


async def _tiers(servers: Servers) -> dict[str, str]:
    """What each server can delete from: one without L2 refuses ``all``, after it has emptied its L1 of them.

    A server that does not answer is asked for ``l1``, and will not answer that either.
    """
    answers, failures = await side_by_side({name: server.admin.read("/status") for name, server in servers.items()})
    tiers = dict.fromkeys(failures, "l1")
    for name, status in answers.items():
        with servers[name].admin.understood("/status"):
            tiers[name] = "all" if status["storage_manager"]["l2_adapters"] else "l1"
    return tiers


def _listed(values: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(values)))
