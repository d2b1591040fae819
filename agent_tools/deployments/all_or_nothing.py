"""A change of several steps: if the cache refuses a step, undo the steps before it."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from agent_tools.errors import LMCacheToolError, OutcomeUnknownError, RefusedError, UnsupportedError


@contextlib.asynccontextmanager
async def all_or_nothing() -> AsyncIterator[AsyncExitStack]:
    """Collect how to undo each step, and undo all of them if the cache refuses a later step.

    If the outcome of a step is unknown, undo nothing, because the caller must first find out what happened.

    Raises:
        OutcomeUnknownError: The undo failed too.
    """
    undo = AsyncExitStack()
    try:
        yield undo
    except (RefusedError, UnsupportedError) as refused:
        try:
            await undo.aclose()
        except LMCacheToolError as error:
            raise OutcomeUnknownError(
                f"{refused}; the undo of the steps before it failed as well: {error}. Read the configuration"
            ) from refused
        raise
