"""Loaded by a server in place of the module: takes names away from LMCache first, as a future version might."""

from typing import Any

from lmcache.v1.distributed.storage_manager import StorageManager


def build_server_modules(build_context: Any) -> Any:
    storage = build_context.server_context.storage_manager
    del StorageManager.add_l2_adapter
    hide(storage._eviction_controllers[0], "_listener")
    from agent_tools.server_module import build_server_modules as build  # noqa: PLC0415

    return build(build_context)


def hide(thing: Any, name: str) -> None:
    """Rename an attribute; LMCache itself does not need it before the server ends."""
    setattr(thing, f"renamed{name}", getattr(thing, name))
    delattr(thing, name)
