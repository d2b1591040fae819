"""Isolation of models and tenants: LMCache never shares KV between models or between cache salts (tenants)."""

from dataclasses import replace

import numpy as np

from agent_tools.workload.access_log import AccessLog, renumber


def isolated(log: AccessLog) -> AccessLog:
    """Return ``log`` with chunk ids that differ wherever model or tenant differ, as in LMCache 0.5.6's ``ObjectKey``.

    Return the log itself if it has one model and one tenant, or if its ids already differ.
    """
    if len(log.tenant_names) * len(log.model_names) <= 1 or not len(log.chunk_ids):
        return log
    owner = log.models.astype(np.int64) * len(log.tenant_names) + log.tenants
    owner_of_access = np.repeat(owner, log.chunks_per_request)
    owner_of_chunk = np.zeros(log.unique_chunks, np.int64)
    owner_of_chunk[log.chunk_ids] = owner_of_access
    if np.array_equal(owner_of_chunk[log.chunk_ids], owner_of_access):
        return log
    chunk_ids, kept = renumber(owner_of_access * log.unique_chunks + log.chunk_ids)
    hashes = None if log.hashes is None else log.hashes[kept % log.unique_chunks]
    return replace(log, chunk_ids=chunk_ids, hashes=hashes)
