"""Compute the hashes of a prompt's chunks with LMCache's own hasher."""

from collections.abc import Sequence

from agent_tools.errors import UnsupportedError
from agent_tools.extras import installing
from agent_tools.lmcache_import import importing_lmcache


def chunk_hashes(tokens: Sequence[int], chunk_size: int, algorithm: str | None) -> list[str]:
    """Return the chained hashes of all whole chunks of a prompt, hexadecimal, in order.

    Args:
        tokens: Token ids of the prompt.
        chunk_size: Tokens per chunk.
        algorithm: The server's ``--hash-algorithm``. ``None`` is LMCache's default, blake3.

    Raises:
        UnsupportedError: lmcache is not installed on this machine.
    """
    try:
        with importing_lmcache():
            from lmcache.v1.multiprocess.token_hasher import TokenHasher  # noqa: PLC0415  takes seconds and pulls in torch
    except ImportError as error:
        raise UnsupportedError(
            "hashing the chunks of a prompt needs lmcache, which is not installed here. Nothing was deleted. Delete through the"
            f" coordinator of a fleet, or {installing('embedded')}"
        ) from error
    hashes = TokenHasher(chunk_size, algorithm or "blake3").compute_chunk_hashes(list(tokens))
    return [bytes(one).hex() for one in hashes]
