"""The layout of a chunk: how many objects LMCache stores for it, and how many bytes they take.

An `lmcache server` stores one object for each KV rank and object group of a chunk (`ObjectKey` in LMCache 0.5.6). The lookup-hash
log states the shapes of one rank's object, and not how many ranks there are; ``/status`` and our server module do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .access_log import AccessLog, renumber

ALIGNMENT = 4096
"""L1 rounds the bytes of an object up to a multiple of this: the default of ``--l1-align-bytes``."""
FULL_ATTENTION = -1
"""The window of an object group of which every chunk is needed for a hit."""
ASSUMED = (
    "the log does not state the world size of {}: 1 is assumed, and sizes in MB are too small by that factor if it is larger"
    " (state it with --world-size MODEL=N)"
)
LEFT_OUT = (
    "the lookups of {} are left out: {}. Predictions hold for the other models, as if this one took no room; start the server"
    " with --server-module agent_tools.server_module to tell the bytes of every model"
)


@dataclass(frozen=True)
class ObjectGroup:
    """One object group of a model: the layers whose KV is stored together."""

    bytes: int
    """KV bytes of one rank's object of one chunk."""
    window: int = FULL_ATTENTION
    """Chunks at the end of a prefix that a hit needs (sliding window), or `FULL_ATTENTION`: all of them."""

    @property
    def allocated(self) -> int:
        """Return the bytes that the object takes in L1."""
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class ChunkLayout:
    """What one chunk of a model is made of."""

    groups: tuple[ObjectGroup, ...]
    """The model's object groups, in LMCache's order."""
    world_size: int | None = None
    """KV ranks; each has an object of its own. ``None``: the log does not say."""
    model: str = ""
    """The model's name as its engine reports it. The log's own name may add the world size; see `name_of`."""

    @property
    def objects(self) -> int:
        """Return the objects of a chunk. An unknown world size counts as 1."""
        return (self.world_size or 1) * len(self.groups)

    @property
    def bytes(self) -> int:
        """Return the bytes of a chunk in L1, over all ranks and object groups. An unknown world size counts as 1."""
        return (self.world_size or 1) * sum(group.allocated for group in self.groups)

    def times(self, factor: int) -> "ChunkLayout":
        """Return the layout of chunks that are `factor` times as large."""
        groups = tuple(ObjectGroup(group.bytes * factor, -(-group.window // factor)) for group in self.groups)
        return replace(self, groups=groups)


def name_of(model: str, world_size: int) -> str:
    """Return the name of a model in a log in which it appears with several world sizes. These share no chunk."""
    return f"{model} (world size {world_size})"


def with_layouts(log: AccessLog, layouts: Sequence[ChunkLayout | None]) -> AccessLog:
    """Return the log with these layouts of its models, and with the bytes of an average distinct chunk as `chunk_bytes`.

    The lookups of models without a layout are left out, and a remark names the models. If no layout is known, the log keeps all
    lookups, and its chunks count as equally large.
    """
    asked = np.unique(log.models)
    unknown = [label for label in asked if layouts[label] is None]
    if not any(layouts) or (len(asked) and len(unknown) == len(asked)):
        return replace(log, layouts=())
    if unknown:
        names = ", ".join(log.model_names[label] for label in unknown)
        log = log.select(np.flatnonzero(~np.isin(log.models, unknown)))
        log = replace(log, remarks=(*log.remarks, LEFT_OUT.format(names, "their bytes are unknown")))
    known = tuple(layouts)
    return replace(log, layouts=known, chunk_bytes=_average(log, known))


def with_world_sizes(log: AccessLog, world_sizes: Mapping[str, Sequence[int]]) -> AccessLog:
    """Return a log whose layouts lack world sizes with the world sizes that are known otherwise.

    If a model runs with several world sizes, its layouts in the log are matched to them: the smaller object belongs to the larger
    world size, and their products must agree. Otherwise the lookups of this model are left out, with a remark.

    Args:
        log: A log with the layouts of one rank.
        world_sizes: The world sizes of each model, by name.
    """
    if not log.layouts:
        return log
    names, layouts = list(log.model_names), list(log.layouts)
    for model in dict.fromkeys(layout.model for layout in layouts if layout is not None):
        labels = [label for label, layout in enumerate(layouts) if layout is not None and layout.model == model]
        sizes = sorted({size for size in world_sizes.get(model, ()) if size > 0})
        if not labels or not sizes or any(layouts[label].world_size for label in labels):  # type: ignore[union-attr]
            continue
        ordered = sorted(labels, key=lambda label: -layouts[label].bytes)  # type: ignore[union-attr]  # world size 1 comes first
        pairs = list(zip(ordered, sizes if len(sizes) > 1 else sizes * len(ordered), strict=False))
        products = {layouts[label].bytes * size for label, size in pairs}  # type: ignore[union-attr]
        if len(sizes) > 1 and (len(ordered) != len(sizes) or len(products) > 1):
            for label in labels:
                layouts[label] = None
            continue
        for label, size in pairs:
            layouts[label] = replace(layouts[label], world_size=size)  # type: ignore[type-var]
            names[label] = name_of(model, size) if len(sizes) > 1 else names[label]
    return with_layouts(replace(log, model_names=tuple(names)), layouts)


def assumed(log: AccessLog) -> tuple[str, ...]:
    """Return a remark for each model whose world size is not known and counts as 1."""
    unknown = [name for name, layout in zip(log.model_names, log.layouts, strict=False) if layout and layout.world_size is None]
    return tuple(ASSUMED.format(name or "the model") for name in dict.fromkeys(unknown))


def is_uniform(log: AccessLog) -> bool:
    """Return whether every chunk of the log is one object of the same bytes, as far as the log says."""
    known = [layout for layout in log.layouts if layout is not None]
    return all(layout.objects == 1 and layout.bytes == known[0].bytes for layout in known)


def layout_of_requests(log: AccessLog) -> list[ChunkLayout]:
    """Return the layout of each model label of a log with layouts; a label without lookups has an empty one."""
    nothing = ChunkLayout((ObjectGroup(1),), 1)
    return [layout or nothing for layout in log.layouts]


def _average(log: AccessLog, layouts: Sequence[ChunkLayout | None]) -> int | None:
    """Return the bytes of the log's average distinct chunk; chunks of different models are different chunks."""
    if not len(log.chunk_ids):
        return next((layout.bytes for layout in layouts if layout is not None), None)
    sizes = np.array([0 if layout is None else layout.bytes for layout in layouts], np.int64)
    owner = np.repeat(log.models.astype(np.int64), log.chunks_per_request)
    _, distinct = renumber(owner * log.unique_chunks + log.chunk_ids)
    return round(float(sizes[distinct // log.unique_chunks].mean()))
