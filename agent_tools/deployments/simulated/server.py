"""One simulated server process from its start to its restart: the model and its counters."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from agent_tools.deployments.counters import Counters, Labels, TokenCounters
from agent_tools.deployments.snapshot import Snapshot
from agent_tools.models import MB, CacheConfig, CacheEntry, Health, TenantUsage
from agent_tools.models.metrics import utc
from agent_tools.prediction.configured import setting_of
from agent_tools.prediction.running_in_process import RunningInProcess
from agent_tools.prediction.running_server import RunningServer
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog

from .settable import IN_PROCESS
from .traffic import Traffic

Int32 = npt.NDArray[np.int32]


class SimulatedServer:
    """A simulated server. Times are seconds since the first one started (`origin`). Ticks and requests come in time order."""

    def __init__(
        self, traffic: Traffic, config: CacheConfig, *, bytes_per_token: int, origin: float, started: float, first_tick: float
    ) -> None:
        """Start a server with empty tiers.

        Args:
            traffic: The requests.
            config: The settings. `reconfigure` changes them.
            bytes_per_token: KV of one token, bytes.
            origin: Unix time of second 0.
            started: When the process starts, seconds.
            first_tick: When the eviction thread first wakes, seconds.
        """
        self._traffic, self.config = traffic, config
        self._origin, self._started = origin, started
        self.bytes_per_token = bytes_per_token
        """KV bytes per token, the same for all KV. Change this only while nothing is stored."""
        self.primary_mb = config.max_size_mb or 0.0
        """L1's size at the start, MB."""
        self.now = started
        """The server's present time, seconds."""
        self._log = traffic.until(started)
        self._hits: Int32 = np.zeros(0, np.int32)
        self._l2_hits: Int32 = np.zeros(0, np.int32)
        self._dropped: Int32 = np.zeros(0, np.int32)
        policy = None if config.eviction_policy is None else IN_PROCESS.get(config.eviction_policy)
        self.model: RunningServer | RunningInProcess = (
            RunningServer(self._setting(), first_tick=first_tick)
            if policy is None
            else RunningInProcess(self._setting().capacity_chunks, policy)
        )

    def advance(self, now: float) -> None:
        """Serve the requests up to `now`. A time in the past changes nothing."""
        self.now = max(now, self.now)
        self._log = self._traffic.until(self.now)
        if isinstance(self.model, RunningServer):
            self.model.setting = self._setting()
        else:
            self.model.capacity_chunks = self._setting().capacity_chunks
        part = slice(len(self._hits), int(np.searchsorted(self._log.timestamps, self.now, side="right")))
        l1, l2, dropped = self.model.run(self._log, part, self.now)
        self._hits = np.concatenate((self._hits, l1 + l2))
        self._l2_hits = np.concatenate((self._l2_hits, l2))
        self._dropped = np.concatenate((self._dropped, dropped))

    def reconfigure(self, config: CacheConfig, *, empty_l2: bool) -> None:
        """Use other settings from now on. L1 keeps its contents."""
        self.config = config
        if empty_l2:
            self.model.empty_l2()

    @property
    def chunk_bytes(self) -> int:
        """Return the KV bytes of one chunk."""
        return self.bytes_per_token * self._log.chunk_size

    def trim(self, max_used_bytes: int) -> None:
        """Remove the least recently used chunks until L1 holds at most `max_used_bytes`."""
        self.model.drop_least_recent(int(self.model.in_l1.sum()) - max(max_used_bytes, 0) // self.chunk_bytes)

    @property
    def hits(self) -> Int32:
        """Return the hit chunks of each request so far, from both tiers, shape (requests,)."""
        return self._hits

    def log(self) -> AccessLog | None:
        """Return the requests so far, with Unix times, or ``None`` before the first."""
        log, count = self._log, len(self._hits)
        if not count:
            return None
        chunk_ids = log.chunk_ids[: log.offsets[count]]
        known = int(chunk_ids.max()) + 1 if len(chunk_ids) else 0
        return replace(
            log,
            chunk_ids=chunk_ids,
            offsets=log.offsets[: count + 1],
            tokens=log.tokens[:count],
            timestamps=log.timestamps[:count] + self._origin,
            tenants=log.tenants[:count],
            models=log.models[:count],
            hashes=None if log.hashes is None else log.hashes[:known],
            chunk_bytes=self.chunk_bytes,
        )

    def snapshot(self) -> Snapshot:
        """Return the present counters and sizes. L2's sizes are unknown without an eviction block, as on a real server."""
        l1, l2 = (int(there.sum()) for there in (self.model.in_l1, self.model.in_l2))
        sizes = [adapter.size_mb for adapter in self.config.l2_adapters or () if adapter.eviction]
        now = round(self._origin + self.now, 6)
        return Snapshot(
            asked_at=now,
            taken_at=now,
            process_start=self._origin + self._started,
            instance_id="simulated",
            counters=self._counters(),
            tokens=self._tokens(),
            l1_used_bytes=l1 * self.chunk_bytes,
            l1_total_bytes=round((self.config.max_size_mb or 0) * MB),
            resident_objects=l1,
            objects_per_chunk=1.0,
            chunk_size=self._log.chunk_size,
            health=Health(healthy=True),
            locked_objects=0,
            simulated=True,
            l2_used_bytes=l2 * self.chunk_bytes if sizes else None,
            l2_total_bytes=round(sizes[0] * MB) if sizes and sizes[0] else None,
        )

    def entries(self, limit: int) -> list[CacheEntry]:
        """Return the chunks of L1 with the most hits since they were stored."""
        request, position = self._accesses()
        chunk = self._log.chunk_ids[: len(request)]
        hit = position < self._hits[request]
        stored = np.full(self._log.unique_chunks, -1)
        stored[chunk[~hit]] = request[~hit]  # NumPy keeps the last assignment to an index
        last = np.full(self._log.unique_chunks, -1)
        last[chunk[hit]] = request[hit]
        hits = np.bincount(chunk[hit & (request > stored[chunk])], minlength=self._log.unique_chunks)
        here = np.flatnonzero(self.model.in_l1[: self._log.unique_chunks])
        top = here[np.argsort(-hits[here], kind="stable")][:limit]
        return [self._entry(int(c), int(hits[c]), int(stored[c]), int(last[c])) for c in top]

    def tenants(self) -> dict[str, TenantUsage]:
        """Return the space that each tenant with requests uses in both tiers."""
        owner = self._owner_of_chunk(self._log.tenants)
        l1, l2 = (self._chunks_of(there, owner) for there in (self.model.in_l1, self.model.in_l2))
        seen = sorted(set(self._log.tenants[: len(self._hits)].tolist()))
        mb = self.chunk_bytes / MB
        with_l2 = bool(self.config.l2_adapters)
        return {self._log.tenant_names[t]: TenantUsage(l1_mb=l1[t] * mb, l2_mb=l2[t] * mb if with_l2 else None) for t in seen}

    def delete(self, model: str, chunk_hashes: set[str], tenant: str) -> int:
        """Remove chunks from L1 by hash. Return the number of removed chunks."""
        log = self._log
        here = np.flatnonzero(self.model.in_l1[: log.unique_chunks])
        models, tenants = self._owner_of_chunk(log.models), self._owner_of_chunk(log.tenants)
        wanted = [
            c
            for c in here
            if (log.model_names[models[c]], log.tenant_names[tenants[c]]) == (model, tenant) and self._hash(c) in chunk_hashes
        ]
        return self.model.drop(np.array(wanted, np.int32))

    def _setting(self) -> ServerSetting:
        setting = setting_of(self.config, self.chunk_bytes)
        assert setting is not None  # noqa: S101  the model covers all settings that reach this line
        return setting

    def _counters(self) -> Counters:
        chunks = self._log.chunks_per_request[: len(self._hits)]
        return Counters(
            lookups=len(chunks),
            short_prompts=int((chunks == 0).sum()),
            stored_chunks=self.model.stored,
            evictions=self.model.removed,
            failed_stores=int(self._dropped.sum()),
            l2_loads_failed=self.model.load_failed,
            l2_evictions=self.model.l2_evicted,
            eviction_ticks=self.model.ticks,
        )

    def _tokens(self) -> dict[Labels, TokenCounters]:
        log, count = self._log, len(self._hits)
        owner = log.models[:count].astype(np.int64) * len(log.tenant_names) + log.tenants[:count]
        columns = (log.chunks_per_request[:count], self._hits - self._l2_hits, self._l2_hits)
        asked, l1, l2 = (np.bincount(owner, column).astype(np.int64) * log.chunk_size for column in columns)
        return {
            (log.model_names[one // len(log.tenant_names)], log.tenant_names[one % len(log.tenant_names)]): TokenCounters(
                requested=int(asked[one]), hit_l1=int(l1[one]), hit_l2=int(l2[one])
            )
            for one in np.unique(owner).tolist()
        }

    def _accesses(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return, for each chunk access so far, its request and its position in the request. Both have shape (accesses,)."""
        count = len(self._hits)
        request = np.repeat(np.arange(count), self._log.chunks_per_request[:count])
        return request, np.arange(len(request)) - self._log.offsets[request]

    def _entry(self, chunk: int, hits: int, stored: int, last: int) -> CacheEntry:
        log, any_request = self._log, max(stored, last)
        model, tenant = log.model_names[log.models[any_request]], log.tenant_names[log.tenants[any_request]]
        return CacheEntry(
            entry_id=f"{model}@{self._hash(chunk)}@{tenant}",
            prefix_hash=self._hash(chunk),
            token_count=log.chunk_size,
            size_mb=self.chunk_bytes / MB,
            hit_count=hits,
            created_at=None if stored < 0 else utc(self._origin + float(log.timestamps[stored])),
            last_accessed=None if last < 0 else utc(self._origin + float(log.timestamps[last])),
        )

    def _hash(self, chunk: int) -> str:
        return "" if self._log.hashes is None else self._log.hashes[chunk].tobytes().hex()

    def _owner_of_chunk(self, owners: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
        """Return the tenant or the model of each chunk, shape (chunks,)."""
        owner = np.zeros(self._log.unique_chunks, np.int64)
        owner[self._log.chunk_ids] = np.repeat(owners, self._log.chunks_per_request)
        return owner

    def _chunks_of(self, there: npt.NDArray[np.bool_], owner: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.bincount(owner[there[: len(owner)]], minlength=len(self._log.tenant_names))
