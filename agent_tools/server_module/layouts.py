"""What a chunk of each registered model is made of: its KV ranks, and the bytes and window of each object group."""

from math import prod
from typing import Any

Group = tuple[int, int]
"""Bytes of one rank's object, and the chunks that a hit needs at the end of a prefix (-1: all)."""


class Layouts:
    """Layouts by model and world size. A layout stays known when its engine has gone, since its chunks may stay."""

    def __init__(self, context: Any) -> None:  # noqa: ANN401  LMCache's MPCacheServerContext
        self._registry = context.layout_desc_registry
        self._sessions = context.session_manager
        self._known: dict[tuple[str, int], tuple[Group, ...]] = {}

    def world_size_of(self, request: str, model: str) -> int:
        """The KV ranks of a request; 0 when it has ended and its model has several world sizes.

        LMCache 0.5.6 names no world size in the events of a lookup, but its session keeps the key.
        """
        session = self._sessions.get(request)
        key = None if session is None else session.lookup_ipc_key
        if key is not None and key.model_name == model:
            self.of(model, int(key.world_size))
            return int(key.world_size)
        sizes = {size for name, size in (*self.registered(), *self._known) if name == model}
        if len(sizes) != 1:
            return 0
        (size,) = sizes
        self.of(model, size)
        return size

    def registered(self) -> list[tuple[str, int]]:
        """Model and world size of all engines that are registered now."""
        with self._registry._lock:  # noqa: SLF001  checked by `fit`
            return list(self._registry._registry)  # noqa: SLF001

    def of(self, model: str, world_size: int) -> tuple[Group, ...] | None:
        """The object groups of a model; ``None`` when no engine has registered it with this world size."""
        groups = self._registry.find_group_layout_descs(model, world_size)
        if groups:
            windows = self._registry.find_attn_desc(model, world_size).num_chunks_in_sw
            self._known[model, world_size] = tuple(
                (_bytes(groups[number]), int(windows[number])) for number in sorted(groups) if number < len(windows)
            )
        return self._known.get((model, world_size))

    def objects(self, model: str, world_size: int) -> int:
        """The objects of a chunk; of a model that nobody registered, those of one object group."""
        groups = self._known.get((model, world_size)) or self.of(model, world_size)
        return max(world_size, 1) * len(groups or (None,))

    def all(self) -> list[dict[str, Any]]:
        """All that are or were registered, as ``/status`` shows them."""
        for model, world_size in self.registered():
            self.of(model, world_size)
        return [
            {"model": model, "world_size": world_size, "groups": [list(group) for group in groups]}
            for (model, world_size), groups in self._known.items()
        ]


def _bytes(layout: Any) -> int:  # noqa: ANN401  LMCache's MemoryLayoutDesc
    return sum(prod(shape) * dtype.itemsize for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True))
