"""Whether an `lmcache server` works, from ``/status``, thread by thread.

``/healthcheck`` answers "healthy" when the eviction thread is dead, and ``is_healthy`` of ``/status`` stays false for good
after a clean removal of a dax device (both seen in 0.5.6), so neither is believed on its own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from agent_tools.models import Health

_DEAD_EVICTION = (
    "the L1 eviction thread of pool {name!r} (policy {policy}) is dead: L1 fills up and every later store fails; restart the"
    " server with policy LRU"
)
_REMOVED_DEVICE = "a removed dax device is still listed as unhealthy; LMCache 0.5.6 never forgets one, and nothing uses it"


def health_of(status: Mapping[str, Any]) -> Health:
    """The health in one ``GET /status`` answer."""
    manager = status["storage_manager"]
    problems = [*_dead_threads(manager), *_sick_adapters(manager)]
    removed = any(_removed_devices(adapter) for adapter in manager.get("l2_adapters", []))
    if not status.get("is_healthy", True) and not problems and not removed:
        problems.append("LMCache says is_healthy=false without naming a part that is broken; look at its log")
    return Health(healthy=not problems, problems=tuple(problems), discounted=(_REMOVED_DEVICE,) if removed else ())


def _dead_threads(manager: Mapping[str, Any]) -> Iterator[str]:
    for name, controller in manager.get("l1_eviction_controllers", {}).items():
        if not controller.get("thread_alive", True):
            yield _DEAD_EVICTION.format(name=name, policy=controller.get("eviction_policy"))
    for name, controller in manager.get("store_controllers", {}).items():
        if not controller.get("thread_alive", True):
            yield f"the L2 store thread of pool {name!r} is dead: nothing new reaches L2; restart the server"
    for part, effect in (("prefetch_controller", "L2 hits are lost"), ("l2_eviction_controller", "L2 grows without bound")):
        if not manager.get(part, {}).get("thread_alive", True):
            yield f"the thread of the {part.replace('_', ' ')} is dead: {effect}; restart the server"


def _sick_adapters(manager: Mapping[str, Any]) -> Iterator[str]:
    for index, adapter in enumerate(manager.get("l2_adapters", [])):
        if not adapter.get("is_healthy", True) and not _removed_devices(adapter):
            yield f"L2 adapter {index} ({adapter.get('type')}) is unhealthy"


def _removed_devices(adapter: Mapping[str, Any]) -> bool:
    """Whether an adapter's only unhealthy devices are removed ones."""
    sick = [device for device in adapter.get("devices", []) if not device.get("is_healthy", True)]
    return bool(sick) and all(device.get("state") == "removed" for device in sick)
