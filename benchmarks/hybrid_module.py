"""A server module that gives models named ``hybrid*`` two object groups, for benchmarks and tests.

LMCache makes object groups from a GPU engine's layers (``--separate-object-groups``: full attention and a sliding window). An
engine without a GPU has one group. This module registers a second one with a window of some chunks, as large as the first, and
stores it whenever the first is stored.
"""
# ruff: noqa: SLF001, ANN401  it stands in for an engine inside LMCache 0.5.6

from typing import Any

from lmcache.v1.distributed.api import AttnWindowDesc
from lmcache.v1.multiprocess.engine_context import LayoutDescRegistry
from lmcache.v1.multiprocess.modules.engine_driven_transfer import EngineDrivenTransferModule


def build_server_modules(build_context: Any) -> None:
    """Add the second group to what is registered and stored from now on."""
    context, window = build_context.server_context, int(build_context.config.get("window", 2))
    _register_two_groups(window)
    for module in build_context.modules:
        if isinstance(module, EngineDrivenTransferModule):
            _store_two_groups(module, context)


def _register_two_groups(window: int) -> None:
    register = LayoutDescRegistry.register

    def with_two(self: Any, model: str, world_size: int, layout: Any, *rest: Any, **named: Any) -> None:
        if not model.startswith("hybrid"):
            register(self, model, world_size, layout, *rest, **named)
            return
        groups = {0: layout, 1: layout}
        register(self, model, world_size, layout, attn_desc=AttnWindowDesc([-1, window]), group_layout_descs=groups)

    LayoutDescRegistry.register = with_two  # type: ignore[method-assign]


def _store_two_groups(module: Any, context: Any) -> None:
    resolve, storage = module._resolve_single_group_obj_keys, context.storage_manager

    def resolved(key: Any) -> Any:
        """Such engines only store (`ReplayedModel.retrieves` is false), so every call belongs to a store."""
        if key.model_name.startswith("hybrid") and key.worker_id is not None:
            layout = context.layout_desc_registry.find_group_layout_descs(key.model_name, key.world_size)[1]
            reserved = storage.reserve_write(context.resolve_obj_keys(key, [1])[0], layout)
            if reserved:
                storage.finish_write(list(reserved))
        return resolve(key)

    module._resolve_single_group_obj_keys = resolved
