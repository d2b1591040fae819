"""Read an L2 adapter from ``/config``, in the form in which ``--l2-adapter`` takes it.

LMCache reports the fields of its configuration object. Most have the names and values of the command line; the exceptions are
here, and `tests/deployments/test_restart_command.py` tries every adapter type of LMCache.
"""

import ast
from collections.abc import Callable, Mapping
from typing import Any

from agent_tools.models import L2Adapter
from agent_tools.redaction import without_secrets

_DEFAULTS = {"affinity_tag": "_default", "shared": False}
_UNKNOWN = {"***": "unknown: LMCache reports a part of these settings as a Python object"}


def adapter_of(type_name: str, reported: Mapping[str, Any]) -> L2Adapter:
    """Return an adapter from one entry of ``l2_adapter_config.adapters`` in ``/config``, with secrets replaced by ``***``.

    Settings that LMCache reports as a Python object alone (the adapter inside a ``fault_inject`` adapter) are unknown.
    """
    settings = {name: value for name, value in reported.items() if value not in (None, "")}
    persist, serde, eviction = (
        _constructor_fields(settings.pop(name, None)) for name in ("persist_config", "serde_config", "eviction_config")
    )
    if any(isinstance(value, str) and " object at 0x" in value for value in settings.values()):
        return L2Adapter(type=type_name, settings=_UNKNOWN)
    if eviction:
        settings["eviction"] = {name: eviction[name] for name in ("eviction_policy", "trigger_watermark", "eviction_ratio")}
    if persist.get("persist_enabled") is False:
        settings["persist_enabled"] = False
    if serde:
        settings["serde"] = {"type": serde["type"], **serde["kwargs"]}
    kept = {name: value for name, value in settings.items() if _DEFAULTS.get(name, ...) != value}
    return L2Adapter(type=type_name, settings=without_secrets(_AS_GIVEN.get(type_name, _direct_io)(kept)))


def _direct_io(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out ``use_odirect`` where it is off, which is the default of every type but ``raw_block``."""
    return {name: value for name, value in settings.items() if (name, value) != ("use_odirect", False)}


def _dax(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out the list of devices if there is one device, which ``device_path`` names, and path and size if there is none."""
    reported = settings.pop("devices", None)
    if reported == []:
        none = {"device_path", "max_dax_size_gb"}
        return {name: value for name, value in settings.items() if name not in none} | {"devices": []}
    devices = [one if isinstance(one, Mapping) else _constructor_fields(one) for one in reported or ()]
    return settings | ({"devices": devices} if len(devices) > 1 else {})


def _mooncake_store(settings: dict[str, Any]) -> dict[str, Any]:
    """Put the keys for Mooncake, which LMCache reports as ``setup_config``, beside LMCache's own."""
    return {**settings.pop("setup_config", {}), **settings}


def _valkey(settings: dict[str, Any]) -> dict[str, Any]:
    """Write ``startup_nodes`` as a text: LMCache reports pairs of host and port."""
    nodes = settings.get("startup_nodes")
    return settings | ({"startup_nodes": ",".join(f"{host}:{port}" for host, port in nodes)} if isinstance(nodes, list) else {})


def _bigtable(settings: dict[str, Any]) -> dict[str, Any]:
    """Give the fields their names on the command line, where timeouts are in milliseconds."""
    given = {_BIGTABLE.get(name, name): value for name, value in settings.items() if not name.endswith("_timeout_sec")}
    for of in ("read", "write"):
        if f"{of}_timeout_sec" in settings:
            given[f"bigtable_{of}_timeout_ms"] = settings[f"{of}_timeout_sec"] * 1000
    return given


_BIGTABLE = {
    name: f"bigtable_{name}"
    for name in ("project_id", "instance_id", "table_name", "max_chunk_size_mb", "family_name", "column_name")
} | {"app_profile_id": "bigtable_app_profile"}
_AS_GIVEN: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bigtable": _bigtable,
    "dax": _dax,
    "mooncake_store": _mooncake_store,
    "raw_block": dict,
    "valkey": _valkey,
}


def _constructor_fields(text: Any) -> dict[str, Any]:  # noqa: ANN401  JSON
    """Return the fields of a Python repr such as ``EvictionConfig(eviction_policy='LRU', ...)``. 0.5.6 reports these reprs."""
    if not isinstance(text, str):
        return {}
    try:
        call = ast.parse(text, mode="eval").body
        return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg} if isinstance(call, ast.Call) else {}
    except (SyntaxError, ValueError):
        return {}
