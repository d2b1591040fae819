"""Find out how each setting of a running `lmcache server` can be changed, in general or to the values of an update."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from agent_tools.deployments.quotas import check_salt
from agent_tools.models import SETTINGS, CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter, Support, SupportLevel, TenantUsage
from agent_tools.models.config import DEFAULT_TENANT
from agent_tools.wire.http_client import AdminClient

from .command_line import L1_POLICIES, has_secret
from .l1_size import size_support
from .live_change import adapter_change
from .module_client import ServerModule
from .settable import (
    L2_ADAPTERS,
    LIVE_PARTS,
    NO_ARC,
    NO_ISOLATED_L2,
    NOT_A_SETTING,
    NOT_LISTED,
    OLDER,
    POLICY_REFUSED,
    QUOTAS,
    SECRETS_NOT_KEPT,
    SUPPORT,
    locked,
    wiped,
)
from .versions import Release

Tenants = Callable[[], Awaitable[Mapping[str, TenantUsage]]]


async def server_support(
    admin: AdminClient,
    module: ServerModule | None,
    arena_folder: Path | None,
    adapters: Sequence[L2Adapter],
    tenants: Tenants,
    update: ConfigUpdate | None,
) -> Mapping[str, Support]:
    """Return for every setting how it can be changed.

    Args:
        admin: The server's admin API.
        module: The server's module, if there is one.
        arena_folder: A folder on the server's host in which we create L1 arenas.
        adapters: The server's L2 adapters.
        tenants: Reads the active tenants. It is called only if the update sets quotas.
        update: The wanted values. ``None`` means any values.

    Raises:
        UnsupportedError: A quota is for an invalid cache salt.
    """
    wanted = update or CacheConfig()
    support = {setting: SUPPORT.get(setting, NOT_A_SETTING) for setting in SETTINGS}
    for part, settings in LIVE_PARTS.items():
        support |= settings if module is not None and module.changes(part) else {}
        support |= {name: locked(support[name]) for name in settings} if module is not None and module.locked else {}
    if wanted.eviction_policy is not None and wanted.eviction_policy not in L1_POLICIES:
        support["eviction_policy"] = Support(level=SupportLevel.UNSUPPORTED, reason=POLICY_REFUSED)
    size, quotas, l2_adapters = await asyncio.gather(
        size_support(admin, module, arena_folder, wanted.max_size_mb),
        _quotas(adapters, tenants, wanted.tenant_quotas_mb),
        _adapters(module, wanted, support["l2_adapters"]),
    )
    return {**support, "max_size_mb": size, "tenant_quotas_mb": quotas, "l2_adapters": l2_adapters}


def on_older(
    release: Release, support: Mapping[str, Support], wanted: CacheConfig | ConfigUpdate | None
) -> Mapping[str, Support]:
    """Return how settings can be changed on a version before 0.5.6, which has neither our module nor live L1 arenas."""
    restart = Support(level=SupportLevel.RESTART, reason=OLDER.format(release.text))
    older = {name: restart if one.level is SupportLevel.RESTART else one for name, one in support.items()}
    if wanted is not None and wanted.eviction_policy is EvictionPolicy.ARC:
        older["eviction_policy"] = Support(level=SupportLevel.UNSUPPORTED, reason=NO_ARC.format(release.text))
    return older


async def _quotas(adapters: Sequence[L2Adapter], tenants: Tenants, wanted: Mapping[str, float] | None) -> Support:
    """Return that quotas are live if L2 evicts by tenant. L2 wipes an unlisted tenant, so all active tenants must be listed."""
    if not any(adapter.by_tenant for adapter in adapters):
        return NO_ISOLATED_L2
    if wanted is None:
        return QUOTAS
    for salt in wanted:
        check_salt(salt)
    alive = {tenant or DEFAULT_TENANT for tenant in await tenants()}
    return wiped(sorted(alive - wanted.keys())) if alive - wanted.keys() else QUOTAS


async def _adapters(module: ServerModule | None, wanted: CacheConfig | ConfigUpdate, of_any: Support) -> Support:
    if wanted.l2_adapters is None or module is None or not module.changes("l2"):
        return of_any
    l2 = await module.l2()
    change = adapter_change(l2.adapters, wanted.l2_adapters)
    if isinstance(change, str):
        return Support(level=SupportLevel.RESTART, reason=f"{change}; a restart empties L1")
    if any(has_secret(adapter) for adapter in change.attached):
        return Support(level=SupportLevel.UNSUPPORTED, reason=SECRETS_NOT_KEPT)
    if not all(map(l2.lists, change.attached)):
        return NOT_LISTED
    return L2_ADAPTERS
