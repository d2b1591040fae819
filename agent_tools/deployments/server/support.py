"""Whether and how each setting of one running `lmcache server` can be changed: to any value, or to those of an update."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from agent_tools.deployments.quotas import check_salt
from agent_tools.models import SETTINGS, CacheConfig, ConfigUpdate, L2Adapter, Support, SupportLevel, TenantUsage
from agent_tools.models.config import DEFAULT_TENANT
from agent_tools.wire.http_client import AdminClient

from .command_line import L1_POLICIES, has_secret
from .l1_size import size_support
from .live_change import adapter_change
from .module_client import ServerModule
from .settable import (
    L2_ADAPTERS,
    LIVE_PARTS,
    NO_ISOLATED_L2,
    NOT_A_SETTING,
    POLICY_REFUSED,
    QUOTAS,
    SECRETS_NOT_KEPT,
    SUPPORT,
    wiped,
)

Tenants = Callable[[], Awaitable[Mapping[str, TenantUsage]]]


async def server_support(
    admin: AdminClient,
    module: ServerModule | None,
    arena_folder: Path | None,
    adapters: Sequence[L2Adapter],
    tenants: Tenants,
    update: ConfigUpdate | None,
) -> Mapping[str, Support]:
    """For every setting.

    Args:
        admin: The server.
        module: The one inside it.
        arena_folder: On the server's host, in which we make L1 arenas.
        adapters: Its L2 adapters.
        tenants: Reads the tenants that are alive; asked only when quotas are to be set.
        update: The values wanted; ``None`` for any.

    Raises:
        UnsupportedError: A quota is for a salt that cannot be.
    """
    wanted = update or CacheConfig()
    support = {setting: SUPPORT.get(setting, NOT_A_SETTING) for setting in SETTINGS}
    for part, settings in LIVE_PARTS.items():
        support |= settings if module is not None and module.changes(part) else {}
    if wanted.eviction_policy is not None and wanted.eviction_policy not in L1_POLICIES:
        support["eviction_policy"] = Support(level=SupportLevel.UNSUPPORTED, reason=POLICY_REFUSED)
    size, quotas, l2_adapters = await asyncio.gather(
        size_support(admin, module, arena_folder, wanted.max_size_mb),
        _quotas(adapters, tenants, wanted.tenant_quotas_mb),
        _adapters(module, wanted, support["l2_adapters"]),
    )
    return {**support, "max_size_mb": size, "tenant_quotas_mb": quotas, "l2_adapters": l2_adapters}


async def _quotas(adapters: Sequence[L2Adapter], tenants: Tenants, wanted: Mapping[str, float] | None) -> Support:
    """Live where L2 evicts by tenant; a tenant that is not listed there is wiped, so every one that is alive must be."""
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
    change = adapter_change((await module.l2()).adapters, wanted.l2_adapters)
    if isinstance(change, str):
        return Support(level=SupportLevel.RESTART, reason=f"{change}; a restart loses all of L1")
    if any(has_secret(adapter) for adapter in change.attached):
        return Support(level=SupportLevel.UNSUPPORTED, reason=SECRETS_NOT_KEPT)
    return L2_ADAPTERS
