"""A change that is under way while a test tries another."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from agent_tools.operations import Operations


@asynccontextmanager
async def change_under_way(operations: Operations, cache: str) -> AsyncIterator[None]:
    """Hold a change of the cache open for the block, and let it end after it."""
    under_way, may_end = anyio.Event(), anyio.Event()

    async def slow() -> None:
        under_way.set()
        await may_end.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operations.actor.drop, operations.registry.get(cache), "clear", "test", "", slow)
        await under_way.wait()
        yield
        may_end.set()
