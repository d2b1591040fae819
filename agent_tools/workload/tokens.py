"""Token ids and KV bytes made from chunk ids, so that LMCache's chained hashes repeat the prefixes of a log."""

import numpy as np
import numpy.typing as npt

VOCABULARY = 32_000
_TAIL_TOKEN = 0
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def prompt(chunk_ids: npt.NDArray[np.int32], tokens: int, chunk_size: int) -> tuple[int, ...]:
    """Return the `tokens` token ids of a request: `chunk_size` for each chunk id, then a tail that is never cached.

    Different chunk ids give different tokens (probability of equal ones: 32,000 ** -chunk_size).
    """
    first = chunk_ids.astype(np.uint64)[:, None] * np.uint64(chunk_size)
    body = _mixed(first + np.arange(chunk_size, dtype=np.uint64)) % np.uint64(VOCABULARY)
    return (*body.ravel().tolist(), *[_TAIL_TOKEN] * (tokens - body.size))


def marks(chunk_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    """Return (chunks,) the 32-bit pattern that fills the KV of each chunk: different for different ids, and never zero."""
    return (chunk_ids.astype(np.uint32) + np.uint32(1)) * np.uint32(0x9E3779B1)  # the factor is odd, so no two products are equal


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output (Steele, Lea, Flood 2014): neighbouring values become unrelated."""
    mixed = (values + np.uint64(1)) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
