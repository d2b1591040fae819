"""Set L2 quotas of tenants (cache salts) through the ``/quota`` routes of `lmcache server` and of LMCache's coordinator."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

from agent_tools.errors import UnsupportedError
from agent_tools.models.config import DEFAULT_TENANT, MB_IN_A_GB
from agent_tools.plain import is_text, plain
from agent_tools.wire.http_client import AdminClient, segment

from .base import Progress

FORBIDDEN = frozenset("@/\\\0")
"""Characters that LMCache 0.5.6 forbids in a cache salt."""

SALT_LENGTH = 128
"""Most characters of a cache salt."""


def check_salt(salt: str) -> None:
    """Raise `UnsupportedError` for a salt that no request can have. LMCache's ``/quota`` routes accept any salt."""
    if FORBIDDEN & set(salt) or not salt or not is_text(salt):
        raise UnsupportedError(
            f"{salt[:SALT_LENGTH]!r} is not a cache salt. A salt must not be empty (use {DEFAULT_TENANT} for requests without"
            f" one) or contain lone surrogates or {' '.join(repr(one) for one in sorted(FORBIDDEN))}. Nothing was changed"
        )
    if len(salt) > SALT_LENGTH:
        raise UnsupportedError(
            f"{salt[:20]!r}... is not a cache salt: it has more than {SALT_LENGTH} characters. Nothing was changed"
        )


async def change_quotas(
    admin: AdminClient, now: Mapping[str, float], wanted: Mapping[str, float], progress: Progress, undo: AsyncExitStack
) -> None:
    """Set the quotas that differ, and remove the quotas that are not wanted. Register how to undo each step.

    Args:
        admin: The client of the server or of the coordinator.
        now: The quotas in force, MB by salt.
        wanted: The wanted quotas, MB by salt.
        progress: Gets one sentence per quota.
        undo: Gets one callback per step that restores the old quota.
    """
    for salt in sorted({*now, *wanted}):
        if now.get(salt) != wanted.get(salt):
            progress(f"quota of tenant {plain(salt)}: {_shown(now.get(salt))} -> {_shown(wanted.get(salt))}")
            await _put(admin, salt, wanted.get(salt))
            undo.push_async_callback(partial(_put, admin, salt, now.get(salt)))


async def _put(admin: AdminClient, salt: str, quota_mb: float | None) -> None:
    route = f"/quota/{segment(salt)}"
    if quota_mb is None:
        await admin.change("DELETE", route)
    else:
        await admin.change("PUT", route, {"limit_gb": quota_mb / MB_IN_A_GB})


def _shown(quota_mb: float | None) -> str:
    return "none" if quota_mb is None else f"{quota_mb:g} MB"
