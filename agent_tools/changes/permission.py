"""Who may change a cache: the mode that the operator allows at most, and the people who may approve a change."""

from collections.abc import Collection
from collections.abc import Set as AbstractSet

from agent_tools.caches.registry import Cache
from agent_tools.errors import ForbiddenError, OutOfBoundsError
from agent_tools.models import Mode
from agent_tools.models.rights import Right


def check_right(rights: AbstractSet[Right], wanted: Right, caller: str | None, approved_by: str | None) -> None:
    """Check whether a caller may ask for a change. One who approved it with the right to approve may have it made.

    Raises:
        ForbiddenError: The caller may not.
    """
    if wanted in rights or (Right.APPROVE in rights and approved_by is not None and approved_by == caller):
        return
    have = ", ".join(sorted(right.value for right in rights))
    raise ForbiddenError(
        f"the token of {caller} does not give the right to {wanted.value} (it gives: {have}); ask the operator for it."
        " Nothing was changed"
    )


def check_permitted(cache: Cache, approvers: Collection[str], approved_by: str | None) -> None:
    """Check whether a change of a cache is permitted, whichever door it comes through.

    Args:
        cache: The cache to change.
        approvers: The names of the people who may approve; if there are none, anybody may.
        approved_by: Who approved this change, or ``None`` if nobody was asked.

    Raises:
        OutOfBoundsError: The operator does not permit the change.
    """
    mode = cache.settings.max_mode
    if mode in {Mode.OBSERVE, Mode.RECOMMEND}:
        raise OutOfBoundsError(
            f"{cache.name} may not be changed: the operator's max_mode is {mode.value}. Tell the operator what would help;"
            " nothing was changed"
        )
    if mode is Mode.APPROVE and approved_by is None:
        raise OutOfBoundsError(
            f"each change of {cache.name} needs a person's approval (max_mode is approve): make it with the graph tune_cache in"
            " mode approve, or with the ready agent; nothing was changed"
        )
    if approvers and approved_by is not None and approved_by not in approvers:
        raise OutOfBoundsError(
            f"{approved_by} may not approve changes: the operator's approvers are {', '.join(sorted(approvers))}, each with a"
            " token of their own; nothing was changed"
        )
