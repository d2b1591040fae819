"""The hit-rate curve of a live window: pieces of an access log are added, and the exact curve can be read at any time."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from agent_tools.workload.access_log import AccessLog

from .hit_rate_curve import HitRateCurve, TouchOrder, hit_rate_curve


class LiveHitRateCurve:
    """Joins successive pieces of one log by chunk hash, keeps the recent history, and computes curves from it.

    Each curve is computed anew from the kept history, so it is exact. Cost: one dictionary look-up per distinct chunk of a piece
    to add it; about 5 ms per million kept chunk accesses to read a curve; about 100 bytes per distinct chunk and 4 per access. A
    chunk last touched before the kept history counts as a miss. So keep a history with more chunks than the largest capacity of
    interest.
    """

    def __init__(self, *, history_chunks: int = 4_000_000) -> None:
        """Keep at least the last ``history_chunks`` chunk accesses, and never more than a quarter above that."""
        if history_chunks < 1:
            raise ValueError(f"history_chunks must be at least 1, got {history_chunks}")
        self._history_chunks = history_chunks
        self._id_by_hash: dict[bytes, int] = {}
        self._log: AccessLog | None = None
        self._waiting: list[AccessLog] = []
        self._waiting_chunks = 0

    def add(self, piece: AccessLog) -> None:
        """Append requests that are later than all earlier ones.

        Raises:
            ValueError: The piece has no hashes (ids have no meaning across pieces), or another chunk size.
        """
        if piece.hashes is None:
            raise ValueError("this piece of a log has no chunk hashes, and pieces can only be joined by hash")
        first = self._log or (self._waiting[0] if self._waiting else piece)
        if piece.chunk_size != first.chunk_size:
            raise ValueError(f"the window holds chunks of {first.chunk_size} tokens, but this piece has {piece.chunk_size}")
        ids = [self._id_by_hash.setdefault(name, len(self._id_by_hash)) for name in _names(piece.hashes)]
        known = np.array(ids, np.int32)
        self._waiting.append(replace(piece, chunk_ids=known[piece.chunk_ids]))
        self._waiting_chunks += len(piece.chunk_ids)
        kept = 0 if self._log is None else len(self._log.chunk_ids)
        if kept + self._waiting_chunks > self._history_chunks * 5 // 4:
            self._forget()

    def log(self) -> AccessLog:
        """Return the kept history as one log.

        Raises:
            ValueError: Nothing was added yet.
        """
        if self._waiting:
            self._log = _joined(self._waiting if self._log is None else [self._log, *self._waiting], self._id_by_hash)
            self._waiting, self._waiting_chunks = [], 0
        if self._log is None:
            raise ValueError("no requests were added to the window yet")
        return self._log

    def curve(self, *, since: float = -np.inf, touch_order: TouchOrder = "tail_first") -> HitRateCurve:
        """Return the curve of the requests at or after ``since`` (seconds, as in the log). All kept history serves as warm-up."""
        log = self.log()
        return hit_rate_curve(log, touch_order=touch_order, counted=log.timestamps >= since)

    def _forget(self) -> None:
        """Drop the oldest requests beyond the history, and the hashes of chunks that are no longer used."""
        log = self.log()
        first = int(np.searchsorted(log.offsets, len(log.chunk_ids) - self._history_chunks, side="right")) - 1
        self._log = log.select(slice(max(first, 0), None))
        assert self._log.hashes is not None  # noqa: S101 - `add` refuses pieces without hashes
        self._id_by_hash = {name: i for i, name in enumerate(_names(self._log.hashes))}


def _names(hashes: npt.NDArray[np.uint8]) -> list[bytes]:
    return [row.tobytes() for row in hashes]


def _joined(pieces: list[AccessLog], id_by_hash: dict[bytes, int]) -> AccessLog:
    """Join pieces whose chunk ids use the same numbering."""
    ends = np.cumsum([0] + [len(piece.chunk_ids) for piece in pieces])
    tenant_names = tuple(dict.fromkeys(name for piece in pieces for name in piece.tenant_names))
    model_names = tuple(dict.fromkeys(name for piece in pieces for name in piece.model_names))
    return AccessLog(
        chunk_size=pieces[0].chunk_size,
        chunk_ids=np.concatenate([piece.chunk_ids for piece in pieces]),
        offsets=np.concatenate([np.zeros(1, np.int64)] + [p.offsets[1:] + end for p, end in zip(pieces, ends, strict=False)]),
        tokens=np.concatenate([piece.tokens for piece in pieces]),
        timestamps=np.concatenate([piece.timestamps for piece in pieces]),
        tenants=np.concatenate([_relabel(piece.tenants, piece.tenant_names, tenant_names) for piece in pieces]),
        models=np.concatenate([_relabel(piece.models, piece.model_names, model_names) for piece in pieces]),
        tenant_names=tenant_names,
        model_names=model_names,
        hashes=np.frombuffer(b"".join(id_by_hash), np.uint8).reshape(len(id_by_hash), -1 if id_by_hash else 0),
        chunk_bytes=pieces[-1].chunk_bytes,
    )


def _relabel(labels: npt.NDArray[np.int16], names: tuple[str, ...], wanted: tuple[str, ...]) -> npt.NDArray[np.int16]:
    if names == wanted:
        return labels
    return np.array([wanted.index(name) for name in names], np.int16)[labels]
