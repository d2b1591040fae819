"""L2 quotas of a whole fleet, which its coordinator keeps: whether they can be set, and to what."""

from collections.abc import Mapping

from agent_tools.deployments.quotas import check_salt
from agent_tools.errors import UnsupportedError
from agent_tools.models import Support, SupportLevel

OTHER_ROUTES = frozenset({"config", ".", ".."})
"""Salts that make another route of ``/quota/{salt}``: ``PUT /quota/config`` sets the quota of all tenants without one."""


def check_quotas(quotas: Mapping[str, float]) -> None:
    """Raise `UnsupportedError` for a salt that no request can carry, or whose quota the coordinator has no route to."""
    for salt in quotas:
        check_salt(salt)
        if salt in OTHER_ROUTES:
            raise UnsupportedError(
                f"the quota of a tenant named {salt!r} cannot be set: /quota/{salt} is another route of the coordinator; give the"
                " tenant another cache salt. Nothing was changed"
            )


def quota_support(default_mb: float | None, wanted: Mapping[str, float] | None) -> Support:
    """Live, unless a quota is wanted for a salt that cannot be.

    Args:
        default_mb: The coordinator's quota for tenants without one of their own, MB.
        wanted: Quotas by salt, MB; ``None`` for any.
    """
    try:
        check_quotas(wanted or {})
    except UnsupportedError as error:
        return Support(level=SupportLevel.UNSUPPORTED, reason=str(error))
    others = (
        "a tenant that is left out has no limit, and loses nothing"
        if default_mb is None
        else f"a tenant that is left out has the coordinator's default of {default_mb:g} MB"
    )
    return Support(
        level=SupportLevel.LIVE,
        reason="the coordinator keeps each tenant's L2 on all servers within its quota, from its next sweep on (every 5 s unless"
        f" set); {others}; quotas survive its restart only with --metadata-path",
    )
