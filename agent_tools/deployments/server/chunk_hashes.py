"""The names LMCache gives to the chunks of a prompt, by its own hasher."""

from collections.abc import Sequence

from agent_tools.errors import UnsupportedError
from agent_tools.lmcache_import import importing_lmcache


def chunk_hashes(tokens: Sequence[int], chunk_size: int, algorithm: str | None) -> list[str]:
    """(chunks,) chained hashes of all whole chunks, hexadecimal.

    Raises:
        UnsupportedError: lmcache is not installed here.
    """
    try:
        with importing_lmcache():
            from lmcache.v1.multiprocess.token_hasher import TokenHasher  # noqa: PLC0415  takes seconds and pulls in torch
    except ImportError as error:
        raise UnsupportedError(
            "lmcache is not installed here, whose hasher names the chunks of a prompt: pip install"
            " 'lmcache-agent-tools[embedded]', or delete through the coordinator of a fleet. Nothing was deleted"
        ) from error
    hashes = TokenHasher(chunk_size, algorithm or "blake3").compute_chunk_hashes(list(tokens))
    return [bytes(one).hex() for one in hashes]
