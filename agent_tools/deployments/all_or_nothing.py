"""Several steps of one change: when a step is refused, the steps before it are taken back."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from agent_tools.errors import LMCacheToolError, OutcomeUnknownError, RefusedError, UnsupportedError


@contextlib.asynccontextmanager
async def all_or_nothing() -> AsyncIterator[AsyncExitStack]:
    """Collects how to take back each step; does so when a later one is refused.

    When the outcome of a step is not known all is left as it is: what to do then is for the caller to see.

    Raises:
        OutcomeUnknownError: Taking back failed too.
    """
    undo = AsyncExitStack()
    try:
        yield undo
    except (RefusedError, UnsupportedError) as refused:
        try:
            await undo.aclose()
        except LMCacheToolError as error:
            raise OutcomeUnknownError(
                f"{refused}; taking back what was changed before that failed as well: {error}. Read the configuration"
            ) from refused
        raise
