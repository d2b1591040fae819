"""Write the command line of an `lmcache server`, from its ``/config`` or for a server of our own, with or without a change."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from agent_tools.errors import UnsupportedError
from agent_tools.models import CacheConfig, ConfigUpdate, EvictionPolicy, L2Adapter
from agent_tools.redaction import SECRET, without_secrets

from .start_flags import at, first_allocation, start_flags, tagged_pools

Flags = dict[str, Any]
"""The value of each flag: a text or number, ``True`` for a bare flag, a list for a repeated flag, a tuple for a flag with several
values."""

L1_POLICIES = {EvictionPolicy.LRU: "LRU", EvictionPolicy.ARC: "ARC", EvictionPolicy.NOOP: "noop"}
"""Eviction policies for L1. LMCache 0.5.6 also accepts IsolatedLRU, but the eviction thread then dies at the watermark."""
POLICY_NAMES = {**L1_POLICIES, EvictionPolicy.ISOLATED_LRU: "IsolatedLRU"}

_OF_ONE_POOL = {"--l1-devdax-path", "--gds-l1-path", "--gds-l1-backend", "--no-gds-l1-use-direct-io", "--l1-align-bytes"} | {
    "--l1-use-hugepages",
    "--no-l1-use-lazy",
    "--shm-name",
}
"""Flags that LMCache refuses or ignores beside ``--l1-manager``."""


def flags_of(boot: Mapping[str, Any], now: CacheConfig) -> Flags:
    """Return the flags that start a server with its present settings. Flags with their default value are left out.

    Args:
        boot: Answer of ``GET /config``: the settings at the start.
        now: The settings in force.
    """
    config = {**boot, "storage_manager": {**boot["storage_manager"], **_live(boot["storage_manager"], now)}}
    pools = [json.dumps(pool) for pool in tagged_pools(config)]
    if len(pools) == 1:  # what is in force is of this pool
        pools = _pools_with_update(pools, _of_l1(now))
    flags: Flags = {"--l1-manager": pools} if pools else {"--l1-size-gb": _size_now(config, now)}
    flags |= dict(start_flags(config))
    if pools:  # each pool states these itself
        flags = {flag: value for flag, value in flags.items() if flag not in _OF_ONE_POOL}
    else:
        flags |= dict(first_allocation(config))
    finds_peers = bool(at(config, "mp.p2p_config.advertise_url"))  # and attaches each as an L2 adapter
    started = [adapter for adapter in now.l2_adapters or () if not (finds_peers and adapter.type == "p2p")]
    flags["--l2-adapter"] = [adapter_json(adapter) for adapter in started]
    modules = at(config, "mp.server_modules") or ()
    if modules:
        flags["--server-module"] = [json.dumps(without_secrets(module)) for module in modules]
    return flags


def _size_now(config: Mapping[str, Any], now: CacheConfig) -> float:
    """Return the present size of L1 in GB; without it, the size at the start."""
    if now.max_size_mb is not None:
        return now.max_size_mb / 1024
    return float(at(config, "storage_manager.l1_manager_config.memory_config.size_in_bytes")) / 2**30


def _live(boot: Mapping[str, Any], now: CacheConfig) -> dict[str, Any]:
    """Return the known present values of the ``storage_manager`` settings that can change live."""
    eviction = {
        "eviction_policy": None if now.eviction_policy is None else POLICY_NAMES[now.eviction_policy],
        "trigger_watermark": now.eviction_watermark,
        "eviction_ratio": now.eviction_ratio,
    }
    known = {name: value for name, value in eviction.items() if value is not None}
    policies = {"store_policy": now.l2_store_policy, "prefetch_policy": now.l2_prefetch_policy}
    return {
        "eviction_config": {**(boot.get("eviction_config") or {}), **known},
        **{name: value for name, value in policies.items() if value is not None},
    }


def with_update(flags: Flags, update: ConfigUpdate) -> Flags:
    """Return the flags with the settings of an update."""
    changed = dict(flags)
    policy = update.eviction_policy
    if update.auto_eviction and policy is None and flags.get("--eviction-policy") == L1_POLICIES[EvictionPolicy.NOOP]:
        policy = EvictionPolicy.LRU  # the usual policy of LMCache
    wanted: Flags = {
        **_of_l1(update),
        "--eviction-policy": None if policy is None else POLICY_NAMES[policy],
        "--chunk-size": update.chunk_size,
        "--l2-store-policy": update.l2_store_policy,
        "--l2-prefetch-policy": update.l2_prefetch_policy,
        "--l2-adapter": None if update.l2_adapters is None else [adapter_json(a) for a in update.l2_adapters],
    }
    if "--l1-manager" in changed:
        changed["--l1-manager"] = _pools_with_update(changed["--l1-manager"], wanted)
        del wanted["--l1-size-gb"]
    changed.update({flag: value for flag, value in wanted.items() if value is not None})
    return changed


def _of_l1(settings: CacheConfig | ConfigUpdate) -> Flags:
    """Return the flags of L1 for the settings that are given; ``None`` for the others."""
    return {
        "--l1-size-gb": None if settings.max_size_mb is None else settings.max_size_mb / 1024,
        "--eviction-policy": None if settings.eviction_policy is None else POLICY_NAMES[settings.eviction_policy],
        "--eviction-trigger-watermark": settings.eviction_watermark,
        "--eviction-ratio": settings.eviction_ratio,
    }


def _pools_with_update(pools: Sequence[str], wanted: Flags) -> list[str]:
    """Return the ``--l1-manager`` objects with the wanted eviction, and the wanted size if there is one pool.

    Raises:
        UnsupportedError: A size is wanted for several pools.
    """
    size = wanted["--l1-size-gb"]
    if size is not None and len(pools) > 1:
        raise UnsupportedError(
            "this server has several L1 pools, and nothing says how they divide max_size_mb: change size_gb in its --l1-manager"
            " flags"
        )
    eviction = {
        "eviction_policy": wanted["--eviction-policy"],
        "trigger_watermark": wanted["--eviction-trigger-watermark"],
        "eviction_ratio": wanted["--eviction-ratio"],
    }
    changed = []
    for pool in map(json.loads, pools):
        pool["eviction"] |= {name: value for name, value in eviction.items() if value is not None}
        changed.append(json.dumps(pool if size is None else pool | {"size_gb": size}))
    return changed


def argv(flags: Flags) -> list[str]:
    """Return the arguments after ``lmcache server``."""
    arguments: list[str] = []
    for flag, value in flags.items():
        if value is True:
            arguments.append(flag)
        elif isinstance(value, tuple):
            arguments += [flag, *map(str, value)]
        else:
            for one in value if isinstance(value, list) else [value]:
                text = _number(one) if isinstance(one, float) else str(one)
                # argparse takes a value that starts with a dash for a flag, unless it is a part of the same word.
                arguments += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return arguments


def _number(value: float) -> str:
    """Return the shortest text that is read back as the same number."""
    return next((text for digits in (6, 12, 17) if float(text := f"{value:.{digits}g}") == value), repr(value))


def command_line(flags: Flags) -> str:
    """Return one line to paste into a shell. Secrets appear as ``***``; the operator must fill them in."""
    return shlex.join(["lmcache", "server", *argv(flags)])


def adapter_json(adapter: L2Adapter) -> str:
    """Return the value of ``--l2-adapter`` for one adapter."""
    return json.dumps({"type": adapter.type, **adapter.settings})


def has_secret(adapter: L2Adapter) -> bool:
    """Return whether a secret of the adapter is hidden as ``***``, so that we cannot start the adapter."""
    return SECRET in adapter_json(adapter)
