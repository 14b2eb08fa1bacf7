"""The model of the lease bucket, and a worker's access to it with the interface of relay/leases/leases.py."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from relay.contract.errors import BrokerUnavailable
from relay.contract.subjects import lane_key, worker_key
from relay.leases.leases import Lease, LeaseTable
from simulation.book import Book
from simulation.clock import Clock
from simulation.network import SILENCE, Late, Link

_NEWS_S = 0.01
"""How late a watcher may hear of a change in the bucket."""
_LATE_TTLS = 0.5
"""How late an answer may be, as a share of the lease's time to live; a worker waits a third of it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    value: str
    revision: int
    expires_s: float
    deleted: bool = False


class Bucket:
    """Keys with an owner, a revision and a time to live."""

    def __init__(self, clock: Clock, book: Book, rng: random.Random, ttl_s: float) -> None:
        self.away_until_s = self.late_until_s = 0.0
        self.watchers: list[Callable[[], None]] = []
        self._clock = clock
        self._book = book
        self._rng = rng
        self._ttl_s = ttl_s
        self._entries: dict[str, _Entry] = {}
        self._revision = 0

    def read(self) -> LeaseTable:
        live = {key: entry for key, entry in self._entries.items() if entry.expires_s > self._clock.now}
        kept = [key.split(".", 1) for key, entry in live.items() if not entry.deleted]
        return LeaseTable(
            frozenset(name for kind, name in kept if kind == "worker"),
            {int(name): live[lane_key(int(name))].value for kind, name in kept if kind == "lane"},
            {key: entry.revision for key, entry in live.items()},
            self._ttl_s,
        )

    def owner(self, lane: int) -> str | None:
        """The worker that has the lease on a lane; None if there is none."""
        return self.read().owners.get(lane)

    def put(self, key: str, value: str, after: int | None, *, deleted: bool = False) -> int | None:
        """Store an entry and return its revision; None if the key's last revision is not `after`."""
        last = self._entries.get(key)
        present = last is not None and last.expires_s > self._clock.now
        if after is not None and after != (last.revision if last and present else 0):
            return None
        self._revision += 1
        self._entries[key] = _Entry(value, self._revision, self._clock.now + self._ttl_s, deleted)
        if last is None or not present or replace(last, revision=0, expires_s=0) != _Entry(value, 0, 0, deleted):
            self._book.note("leases", f"{key} {'is given up by' if deleted else 'belongs to'} {value}")
            for watcher in self.watchers:
                self._clock.after(self._rng.random() * _NEWS_S, watcher)
        return self._revision

    def renew(self, key: str, value: str, after: int) -> int | None:
        """Store it again, also if an earlier write of the same worker was stored without its knowledge."""
        revision = self.put(key, value, after)
        last = self._entries.get(key)
        if revision is None and last is not None and last.expires_s > self._clock.now and last.value == value:
            revision = None if last.deleted else self.put(key, value, last.revision)
        return revision

    def ask(self, answer: Callable[[], Any]) -> Any:
        """What `answer()` returns, if the bucket answers; a late answer may come after the caller's timeout."""
        if self._clock.now < self.away_until_s:
            return SILENCE
        late = self._clock.now < self.late_until_s
        return Late(answer(), self._rng.random() * _LATE_TTLS * self._ttl_s) if late else answer()


class WorkerLeases:
    """The bucket as one worker sees it. A lease is valid from the moment at which it was requested."""

    def __init__(self, clock: Clock, bucket: Bucket, link: Link, worker: str, ttl_s: float) -> None:
        self.worker = worker
        self.ttl_s = ttl_s
        self.changed = asyncio.Event()
        self._clock = clock
        self._bucket = bucket
        self._link = link

    async def try_elsewhere(self) -> None:
        """Do nothing: there is only one server."""

    async def watch(self) -> None:
        self._bucket.watchers.append(lambda: self._link.process.post(self.changed.set))

    async def read(self) -> LeaseTable:
        return await self._ask(self._bucket.read)

    async def announce(self) -> None:
        await self._ask(lambda: self._bucket.put(worker_key(self.worker), self.worker, None))

    async def depart(self) -> None:
        await self._ask(lambda: self._bucket.put(worker_key(self.worker), self.worker, None, deleted=True))

    async def acquire(self, lane: int, table: LeaseTable) -> Lease | None:
        key = lane_key(lane)
        return await self._hold(lane, lambda: self._bucket.put(key, self.worker, table.revisions.get(key, 0)))

    async def renew(self, lease: Lease) -> Lease | None:
        return await self._hold(
            lease.lane, lambda: self._bucket.renew(lane_key(lease.lane), self.worker, lease.revision)
        )

    async def release(self, lease: Lease) -> None:
        await self._ask(lambda: self._bucket.put(lane_key(lease.lane), self.worker, lease.revision, deleted=True))

    async def _hold(self, lane: int, put: Callable[[], int | None]) -> Lease | None:
        good_until_s = self._clock.monotonic() + self.ttl_s
        revision = await self._ask(put)
        return None if revision is None else Lease(lane, revision, good_until_s)

    async def _ask(self, answer: Callable[[], Any]) -> Any:
        if not self._link.is_connected:
            raise BrokerUnavailable(["nats"], "not connected")
        try:
            async with asyncio.timeout(self.ttl_s / 3):
                return await self._link.ask(lambda: self._bucket.ask(answer))
        except TimeoutError as error:
            raise BrokerUnavailable(["nats"], "no answer") from error
