"""What runs inside `lmcache server`: settings made live, a workload window, entries. Loaded by LMCache's ``--server-module``.

    lmcache server ... --server-module '{"module_path": "agent_tools.server_module", "config": {"arena_folder": "/dev/shm"}}'

Nothing else in this distribution imports it, and of the rest it imports only `redaction`; else LMCache, FastAPI with Pydantic,
NumPy and msgspec, all of which the server has loaded anyway. All routes are under ``/agent-tools`` of the server's admin HTTP;
sizes there are bytes unless the name says otherwise, times are Unix seconds. What cannot be done answers
``application/problem+json``.

| route | what |
|---|---|
| GET ``status`` | interface version, LMCache version, parts that are on or off and why, bounds, recording |
| GET, PUT ``eviction`` | policy, watermark and ratio of each L1 manager |
| GET ``l2``; POST ``l2/adapters``; DELETE ``l2/adapters/{id}`` | L2 adapters |
| PUT ``l2/adapters/{id}/eviction``, PUT ``l2/policies`` | their eviction; prefetch and store policy |
| GET, PUT ``arenas`` | size of an L1 that is made of devdax arenas |
| GET ``window?since=&limit=``, DELETE ``window`` | the lookups, below |
| GET ``entries?top=``, POST ``entries/remove`` | chunks in L1 |
| GET ``entries/top?limit=`` | only those hit most, at no cost to speak of |

**The window** is MessagePack: one map of plain values, of which the columns are little-endian arrays as raw bytes.

* ``version`` 1; ``instance``: text, another one after each restart of the server, which begins a new sequence.
* ``chunk_size``: tokens. ``rate``: share of the distinct chunks that is recorded, 1 or 1/2, 1/4 .. (see below).
* ``first``: sequence number of the first lookup in this answer, ``next``: pass it as ``since`` the next time, ``more``: whether
  there are more already, ``lost``: lookups after ``since`` that were forgotten before they were asked for.
* ``tenants``, ``models``: lists of names that the columns index; index -1 is one beyond the first 4096 names.
* ``world_sizes``, ``groups``: for each of ``models`` its KV ranks (0: not known), and ``[bytes of one rank's object, window in
  chunks or -1]`` of each object group (null: not known). A model with two world sizes is listed twice.
* ``columns``, each with one value per lookup: ``time`` <f8, ``tokens`` <i8 (tail included), ``chunks`` <i4 (whole chunks),
  ``hit_l1`` <i4 and ``hit_l2`` <i4 (leading chunks found; their sum is the hit), ``tenant`` <i2, ``model`` <i2, ``recorded`` <i4
  (how many of its chunks are listed in ``chunk_ids``; equal to ``chunks`` at rate 1).
* ``chunk_ids`` <i4: the recorded chunks of all lookups one after the other, numbered from 0 by first appearance in this answer.
* ``hashes`` <u8: for each of these numbers the first 8 bytes of LMCache's chunk hash, by which answers are joined. As in LMCache
  a chunk stands for its whole prefix; it says nothing about model and tenant, which are parts of a chunk's identity too.

So ``AccessLog(chunk_size, chunk_ids, offsets=cumsum of recorded, tokens, timestamps=time, tenants, models, ...)`` of one answer
is complete. Lookups are listed as they finished; sort by time where it matters. When the bound on chunks is too small for
``window_seconds`` of traffic, the recorded share of distinct chunks is halved by their hash (SHARDS, Waldspurger et al., FAST
2015): the same chunks at every time, hence exact reuse of those that are left; predict with a cache of ``rate`` times the size.
``chunks`` and the hits stay those of whole requests.
"""

import logging
from typing import Any

INTERFACE = 1
"""Version of the routes; raised when one changes its meaning."""


def build_server_modules(build_context: Any) -> Any:  # noqa: ANN401  LMCache's ExtServerModuleBuildContext
    """The factory that `lmcache server` calls at its start; whatever goes wrong in here, the server starts."""
    try:
        from .module import AgentTools  # noqa: PLC0415  an LMCache without a name we import must not stop the server

        return AgentTools.install(build_context)
    except Exception:
        logging.getLogger(__name__).exception("agent_tools.server_module could not be loaded; the server goes on without it")
        return None
