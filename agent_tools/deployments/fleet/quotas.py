"""Check L2 quotas of a whole fleet, which its coordinator keeps."""

from collections.abc import Mapping

from agent_tools.deployments.quotas import check_salt
from agent_tools.errors import UnsupportedError
from agent_tools.models import Support, SupportLevel

OTHER_ROUTES = frozenset({"config", ".", ".."})
"""Salts for which ``/quota/{salt}`` is another route. ``PUT /quota/config`` sets the quota of all tenants without their own."""


def check_quotas(quotas: Mapping[str, float]) -> None:
    """Raise `UnsupportedError` for a salt that no request can have, or whose quota the coordinator cannot set."""
    for salt in quotas:
        check_salt(salt)
        if salt in OTHER_ROUTES:
            raise UnsupportedError(
                f"cannot set a quota for the tenant {salt!r}, because /quota/{salt} is another route of the coordinator; give the"
                " tenant another cache salt. Nothing was changed"
            )


def quota_support(default_mb: float | None, wanted: Mapping[str, float] | None) -> Support:
    """Return that quotas can be changed live, unless a quota is for an invalid salt.

    Args:
        default_mb: The coordinator's quota for tenants without their own, MB.
        wanted: Quotas by salt, MB. ``None`` checks no quotas.
    """
    try:
        check_quotas(wanted or {})
    except UnsupportedError as error:
        return Support(level=SupportLevel.UNSUPPORTED, reason=str(error))
    others = (
        "a tenant that is not listed has no limit and loses nothing"
        if default_mb is None
        else f"a tenant that is not listed has the coordinator's default of {default_mb:g} MB"
    )
    return Support(
        level=SupportLevel.LIVE,
        reason="the coordinator enforces each tenant's L2 quota on all servers from its next sweep on (by default every 5 s);"
        f" {others}; quotas survive a restart of the coordinator only with --metadata-path",
    )
