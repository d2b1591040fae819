"""The parts of the module on one server: those that fit its LMCache and that the operator wants; and why the others are off."""

import logging
from dataclasses import dataclass, field
from typing import Any, get_args

from .chunk_counts import ChunkCounts
from .fit import misfits
from .layouts import Layouts
from .lookups import Lookups
from .options import Options, Part
from .window import Window


@dataclass
class Parts:
    """What could be made, and why the rest could not."""

    made: dict[Part, Any] = field(default_factory=dict)
    """Part -> the object that does its work."""
    off: dict[Part, str] = field(default_factory=dict)
    """Part -> why it is off."""
    lookups: Lookups | None = None
    """What feeds window and entries."""
    counts: ChunkCounts | None = None
    """Chunks in L1, stored and removed; ``None`` without window and entries."""
    layouts: Layouts | None = None
    """What a chunk of each model is made of; ``None`` without window and entries."""

    def close(self) -> None:
        """Change and record nothing any more."""
        if self.lookups:
            self.lookups.close()
        if "eviction" in self.made:
            self.made["eviction"].close()


def assembled(context: Any, options: Options) -> Parts:  # noqa: ANN401  LMCache's MPCacheServerContext
    """All parts that can be there; never raises."""
    parts = Parts()
    for part in get_args(Part):
        try:
            why = _why_not(context, options, part)
            if why is None:
                parts.made[part] = _made(context, options, part)
        except Exception as error:
            logging.getLogger(__name__).exception("the part %s could not be made", part)
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            parts.off[part] = why
    consumers = [parts.made["window"].add] if "window" in parts.made else []
    if "entries" in parts.made:
        consumers.append(parts.made["entries"].history.add)
    if consumers:
        parts.layouts = Layouts(context)
        parts.counts = ChunkCounts(context.event_bus, parts.layouts)
        parts.lookups = Lookups(context.event_bus, context.chunk_size, consumers, parts.layouts.world_size_of)
    return parts


def _why_not(context: Any, options: Options, part: Part) -> str | None:  # noqa: ANN401
    if part in options.off:
        return "switched off in the config of --server-module"
    if part in {"window", "entries"} and not getattr(getattr(context, "event_bus", None), "enabled", True):
        return "the server was started with --disable-observability, so nothing tells of lookups"
    missing = misfits(context, part)
    return f"this LMCache has no {', '.join(missing)}" if missing else None


def _made(context: Any, options: Options, part: Part) -> object:  # noqa: ANN401
    # Each part imports names of LMCache's, which another version may not have.
    if part == "eviction":
        from .eviction import Eviction  # noqa: PLC0415

        return Eviction(context)
    if part == "l2":
        from .l2 import L2  # noqa: PLC0415

        return L2(context, options)
    if part == "arenas":
        from .arenas import Arenas  # noqa: PLC0415

        return Arenas(context, options)
    if part == "entries":
        from .entries import Entries  # noqa: PLC0415

        return Entries(context, options)
    return Window(options.window_requests, options.window_chunks, options.window_seconds)
