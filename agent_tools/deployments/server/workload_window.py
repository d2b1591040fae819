"""Fetch the workload window of the server's module piece by piece, and keep it as one access log."""

from collections import Counter
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import numpy as np

from agent_tools.prediction.live_window import LiveHitRateCurve
from agent_tools.wire.http_client import AdminClient
from agent_tools.wire.prometheus import MOST
from agent_tools.workload.access_log import AccessLog, in_time_order
from agent_tools.workload.chunk_layout import ChunkLayout, ObjectGroup, name_of, with_layouts

from . import module_client as server_module

ROUTE = f"{server_module.ROUTE}/window"
MOST_PIECES = 10_000
"""Most pieces per fetch. A real window has fewer; the limit protects from endless answers."""
OTHERS = "(others)"
"""Name of all tenants or models that the module does not record separately."""
SAMPLED = (
    "The window was too small for all chunks, so the server's module kept one in {:.0f} distinct chunks. Sizes are scaled"
    " accordingly, and rates are estimates"
)
UNKNOWN = " (world size unknown)"
"""Ends the name of a model whose world size the module does not know, within this file."""
_COLUMNS = {"time": "<f8", "tokens": "<i8", "chunks": "<i4", "tenant": "<i2", "model": "<i2", "recorded": "<i4"}


class WorkloadWindow:
    """The recorded lookups of one server's module, including older ones that the module has since dropped."""

    def __init__(self, admin: AdminClient) -> None:
        """Start without any lookups."""
        self._admin = admin
        self._fetching = anyio.Lock()
        self._origin: tuple[str, float] | None = None
        """The module's instance and sampling rate for the kept lookups. Pieces with another origin do not match them."""
        self._kept = LiveHitRateCurve()
        self._requests = self._next = 0
        self._log: AccessLog | None = None
        self._layouts: dict[str, ChunkLayout | None] = {}
        """The layout of each model, by its name within this class: with its world size."""

    async def log(self) -> AccessLog | None:
        """Return all known lookups in order of time, or ``None`` before the first. Fetch only the new lookups."""
        async with self._fetching:
            for _ in range(MOST_PIECES):
                answer = await self._admin.read_bytes(ROUTE, since=self._next)
                with self._admin.understood(ROUTE):
                    if not await self._add(answer):
                        break
            if self._log is None and self._requests:
                self._log = await anyio.to_thread.run_sync(self._joined)
            return self._log

    def reaches(self, since: float | None) -> bool:
        """Return whether all lookups since a Unix time are known, unsampled. ``None`` means since the server started."""
        if self._origin is None or self._origin[1] < 1:
            return False
        began_with_the_server = self._next == self._requests
        return began_with_the_server or (since is not None and self._log is not None and self._log.timestamps[0] <= since)

    async def _add(self, raw: bytes) -> bool:
        """Keep the lookups of an answer. Return whether there are more to fetch."""
        try:
            answer = msgspec.msgpack.decode(raw)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error
        origin = (answer["instance"], answer["rate"])
        if answer["lost"] or origin != self._origin:
            self._origin, self._kept, self._requests, self._log = origin, LiveHitRateCurve(), 0, None
            if self._next:  # the kept lookups do not match the new ones: read everything again
                self._next = 0
                return True
        piece = _decoded(answer)
        self._layouts |= zip(piece.model_names, piece.layouts, strict=False)
        if len(piece):
            await anyio.to_thread.run_sync(self._kept.add, piece)
            self._requests, self._log = self._requests + len(piece), None
        more, self._next = answer["more"] and answer["next"] > self._next, int(answer["next"])
        return bool(more)

    def _joined(self) -> AccessLog:
        log = self._kept.log()
        self._requests = min(self._requests, len(log))  # the history drops its oldest requests when it grows too long
        log = self._named(log)
        rate = self._origin[1] if self._origin else 1.0
        if rate == 1:
            return in_time_order(log)
        # A request without kept chunks carries no information. The length of other requests comes from their kept chunks.
        some = log.select(np.flatnonzero(log.chunks_per_request > 0))
        tokens = some.chunks_per_request * some.chunk_size + (rate * (some.tokens % some.chunk_size)).astype(np.int64)
        return in_time_order(replace(some, tokens=tokens, sampling_rate=rate, remarks=(SAMPLED.format(1 / rate),)))

    def _named(self, log: AccessLog) -> AccessLog:
        """Return the log with the models' own names, if each model has one world size, and with what is known of layouts."""
        layouts = [self._layouts.get(name) for name in log.model_names]
        used = [layouts[label] for label in np.unique(log.models)]
        several = Counter(layout.model for layout in used if layout is not None)
        names = [
            name if layout is None or several[layout.model] > 1 else layout.model
            for name, layout in zip(log.model_names, layouts, strict=True)
        ]
        log = replace(log, model_names=tuple(name.removesuffix(UNKNOWN) for name in names))
        return with_layouts(log, [layout if layout is None or layout.world_size else None for layout in layouts])


def _decoded(answer: dict[str, Any]) -> AccessLog:
    column = {name: np.frombuffer(answer["columns"][name], kind) for name, kind in _COLUMNS.items()}
    pairs = zip(answer["models"], _shapes(answer)[0], strict=True)
    wanted = [name_of(model, size) if size else model + UNKNOWN for model, size in pairs]
    tenants, models = _named(column["tenant"], answer["tenants"]), _named(column["model"], wanted)
    hashes = np.frombuffer(answer["hashes"], np.uint8).reshape(-1, 8)
    chunk_ids = np.frombuffer(answer["chunk_ids"], "<i4")
    # Code that uses a log relies on all of this without checking.
    if (
        len({len(one) for one in column.values()}) != 1
        or (column["recorded"] < 0).any()
        or column["recorded"].sum(dtype=np.int64) != len(chunk_ids)
        or ((chunk_ids < 0) | (chunk_ids >= len(hashes))).any()
        or (column["tokens"] < 0).any()
        or not np.isfinite(column["time"]).all()
        or answer["chunk_size"] < 1
    ):
        raise ValueError("its columns are inconsistent")
    return AccessLog(
        chunk_size=int(answer["chunk_size"]),
        chunk_ids=chunk_ids,
        offsets=np.concatenate(([0], np.cumsum(column["recorded"], dtype=np.int64))),
        tokens=column["tokens"],
        timestamps=column["time"],
        tenants=tenants[0],
        models=models[0],
        tenant_names=tenants[1],
        model_names=models[1],
        layouts=tuple(map(_layout, answer["models"], *_shapes(answer))),
        hashes=hashes,
    )


def _shapes(answer: dict[str, Any]) -> tuple[list[int], list[Any]]:
    """Return world size and object groups of each model; an older module does not tell them."""
    count = len(answer["models"])
    sizes, groups = answer.get("world_sizes", [0] * count), answer.get("groups", [None] * count)
    if len(sizes) != count or len(groups) != count or not all(isinstance(size, int) and 0 <= size < 256 for size in sizes):
        raise ValueError("its world sizes are inconsistent")
    return sizes, groups


def _layout(model: str, world_size: int, groups: list[tuple[int, int]] | None) -> ChunkLayout | None:
    if not world_size or not groups:
        return None
    if not all(0 < size < MOST and window >= -1 for size, window in groups):
        raise ValueError("it has an object group without a size")
    return ChunkLayout(tuple(ObjectGroup(size, window) for size, window in groups), world_size, model)


def _named(indexes: Any, names: list[str]) -> tuple[Any, tuple[str, ...]]:  # noqa: ANN401  (requests,) int16
    if (indexes >= max(len(names), 1)).any():
        raise ValueError("it has no name for a tenant or model number")
    if not (indexes < 0).any():
        return indexes, tuple(names) or ("",)
    return np.where(indexes < 0, len(names), indexes).astype(np.int16), (*names, OTHERS)
