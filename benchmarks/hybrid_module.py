"""A server module that gives models named ``hybrid*`` two object groups and ``triple*`` three, for benchmarks and tests.

LMCache makes object groups from a GPU engine's layers (``--separate-object-groups``: full attention and a sliding window). An
engine without a GPU has one group. This module registers the others with a window of some chunks, each as large as the first, and
stores them whenever the first is stored.
"""
# ruff: noqa: SLF001, ANN401  it stands in for an engine inside LMCache 0.5.6

from typing import Any

from lmcache.v1.distributed.api import AttnWindowDesc
from lmcache.v1.multiprocess.engine_context import LayoutDescRegistry
from lmcache.v1.multiprocess.modules.engine_driven_transfer import EngineDrivenTransferModule

GROUPS = {"hybrid": 2, "triple": 3}
"""Object groups by how a model's name begins."""


def build_server_modules(build_context: Any) -> None:
    """Add the other groups to what is registered and stored from now on."""
    context, window = build_context.server_context, int(build_context.config.get("window", 2))
    _register_groups(window)
    for module in build_context.modules:
        if isinstance(module, EngineDrivenTransferModule):
            _store_groups(module, context)


def object_groups(model: str) -> int:
    """Return how many object groups a model of this name has."""
    return next((groups for begin, groups in GROUPS.items() if model.startswith(begin)), 1)


def _register_groups(window: int) -> None:
    register = LayoutDescRegistry.register

    def with_groups(self: Any, model: str, world_size: int, layout: Any, *rest: Any, **named: Any) -> None:
        if (groups := object_groups(model)) == 1:
            register(self, model, world_size, layout, *rest, **named)
            return
        windows = AttnWindowDesc([-1] + [window] * (groups - 1))
        layouts = dict.fromkeys(range(groups), layout)
        register(self, model, world_size, layout, attn_desc=windows, group_layout_descs=layouts)

    LayoutDescRegistry.register = with_groups  # type: ignore[method-assign]


def _store_groups(module: Any, context: Any) -> None:
    resolve, storage = module._resolve_single_group_obj_keys, context.storage_manager

    def resolved(key: Any) -> Any:
        """Such engines only store (`ReplayedModel.retrieves` is false), so every call belongs to a store."""
        for group in range(1, object_groups(key.model_name)) if key.worker_id is not None else ():
            layout = context.layout_desc_registry.find_group_layout_descs(key.model_name, key.world_size)[group]
            reserved = storage.reserve_write(context.resolve_obj_keys(key, [group])[0], layout)
            if reserved:
                storage.finish_write(list(reserved))
        return resolve(key)

    module._resolve_single_group_obj_keys = resolved
