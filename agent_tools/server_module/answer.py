"""A slice of the workload window as MessagePack, as the package describes it."""

from typing import Any

import msgspec
import numpy as np

from .window import COLUMNS, Hashes, Slice


def packed(part: Slice, **more: Any) -> bytes:  # noqa: ANN401  plain values
    """The whole answer; `more` are the values that a slice does not have itself."""
    ids, hashes = _numbered(part.chunks)
    answer = {
        "first": part.first,
        "next": part.first + len(part.records),
        "more": part.more,
        "lost": part.lost,
        "rate": part.rate,
        "columns": {name: part.records[name].tobytes() for name in COLUMNS},
        "chunk_ids": ids.astype("<i4").tobytes(),
        "hashes": hashes.astype("<u8").tobytes(),
    }
    return msgspec.msgpack.encode(more | answer)


def _numbered(chunks: Hashes) -> tuple[Any, Hashes]:
    """Dense numbers by first appearance, and the hash of each."""
    values, first, inverse = np.unique(chunks, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first, kind="stable")
    number = np.empty(len(values), dtype=np.int32)
    number[by_appearance] = np.arange(len(values), dtype=np.int32)
    return number[inverse], values[by_appearance]
