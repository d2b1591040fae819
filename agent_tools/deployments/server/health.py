"""Judge the health of an `lmcache server` from ``/status``, thread by thread.

We trust neither of LMCache's own verdicts alone (both seen in 0.5.6): ``/healthcheck`` answers "healthy" when the eviction thread
is dead, and ``is_healthy`` of ``/status`` stays false after a clean removal of a dax device.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from agent_tools.models import Health
from agent_tools.plain import plain

_DEAD_EVICTION = (
    "the L1 eviction thread of pool {name!r} (policy {policy}) is dead: L1 fills up and every later store fails; restart the"
    " server with policy LRU"
)
_REMOVED_DEVICE = "LMCache 0.5.6 still lists a removed dax device as unhealthy; nothing uses the device, so ignore this"


def health_of(status: Mapping[str, Any]) -> Health:
    """Return the health from an answer of ``GET /status``."""
    manager = status["storage_manager"]
    problems = [*_dead_threads(manager), *_sick_adapters(manager)]
    removed = any(_removed_devices(adapter) for adapter in manager.get("l2_adapters", []))
    if not status.get("is_healthy", True) and not problems and not removed:
        problems.append("LMCache reports is_healthy=false but names no broken part; read the server's log")
    return Health(healthy=not problems, problems=tuple(problems), discounted=(_REMOVED_DEVICE,) if removed else ())


def _dead_threads(manager: Mapping[str, Any]) -> Iterator[str]:
    for name, controller in manager.get("l1_eviction_controllers", {}).items():
        if not controller.get("thread_alive", True):
            yield _DEAD_EVICTION.format(name=plain(name), policy=plain(controller.get("eviction_policy")))
    for name, controller in manager.get("store_controllers", {}).items():
        if not controller.get("thread_alive", True):
            yield f"the L2 store thread of pool {plain(name)!r} is dead: nothing new reaches L2; restart the server"
    for part, effect in (("prefetch_controller", "L2 hits are lost"), ("l2_eviction_controller", "L2 grows without bound")):
        if not manager.get(part, {}).get("thread_alive", True):
            yield f"the thread of the {part.replace('_', ' ')} is dead: {effect}; restart the server"


def _sick_adapters(manager: Mapping[str, Any]) -> Iterator[str]:
    for index, adapter in enumerate(manager.get("l2_adapters", [])):
        if not adapter.get("is_healthy", True) and not _removed_devices(adapter):
            yield f"L2 adapter {index} ({plain(adapter.get('type'))}) is unhealthy; check its storage"


def _removed_devices(adapter: Mapping[str, Any]) -> bool:
    """Return whether all unhealthy devices of an adapter are removed devices."""
    sick = [device for device in adapter.get("devices", []) if not device.get("is_healthy", True)]
    return bool(sick) and all(device.get("state") == "removed" for device in sick)
