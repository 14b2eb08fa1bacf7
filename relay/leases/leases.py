"""Leases on lanes, in the key-value bucket RELAY_LEASES: which worker drives which lane, and which workers are alive.

    lane.<n>       the worker that drives lane n: created if absent, renewed by revision, deleted when released
    worker.<id>    a worker that is alive

The server removes a key that is not renewed within the bucket's time to live. A lease is valid for that time, counted
from the moment at which its renewal was *sent*. The server starts counting later, so our lease has ended before another
worker can get one.
"""

import asyncio
import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nats.aio.msg import Msg

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    FLOOR_HEADER,
    LEASE_STREAM,
    LEASE_SUBJECTS,
    api_stream_info,
    is_marker,
    lane_key,
    worker_key,
)
from relay.core.floors import Floors
from relay.nats.err_codes import WRONG_LAST_SEQUENCE
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, publish_confirmed
from relay.nats.messages import find_message
from relay.observability.logs import get_logger
from relay.timing.clock import monotonic

_log = get_logger(__name__)

_EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
_NS_PER_S: Final = 1_000_000_000
_OPERATION: Final = "KV-Operation"
_STORED_AFTER_S: Final = 0.25
"""After this long, what was heard is stored: clients hear a write while the servers still agree on it."""
_LANE: Final = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drive a lane, until `good_until_s` on the monotonic clock of the process that holds it."""

    lane: int
    revision: int
    good_until_s: float


@dataclass(frozen=True, slots=True)
class LeaseTable:
    """What the bucket held at one moment."""

    workers: frozenset[str]
    owners: Mapping[int, str]
    """The worker that drives each lane; lanes without an owner are left out."""
    revisions: Mapping[str, int]
    """The last revision of each key, deleted ones included. A new entry must follow it."""
    ttl_s: float
    """The bucket's time to live."""
    floors: Mapping[int, str | None] = field(default_factory=dict[int, str | None])
    """The header FLOOR_HEADER of each lane's key, if it has one."""
    silent_s: Mapping[str, float] = field(default_factory=dict[str, float])
    """How long ago each worker last announced itself, on the server's clock."""


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    value: str | None
    """None if it was deleted."""
    revision: int
    floor: str | None
    stored_at_s: float


class Leases:
    """The bucket as one worker sees it. If a write is cancelled, it may or may not be stored.

    Args:
        worker: this worker's id: letters, digits, `-` and `_`.
        ttl_s: the bucket's time to live. It may be changed while leases are held, if all that hold some go by it.
        floors: what to write with the lease of each lane.
    """

    def __init__(self, client: FrameClient, worker: str, ttl_s: float, floors: Floors | None = None) -> None:
        self.worker = worker
        self.ttl_s = ttl_s
        self.changed = asyncio.Event()
        """Set when the bucket may have changed, as a hint to read it."""
        self._client = client
        self._floors = floors or Floors()
        self._last_values: dict[str, bytes] = {}  # by subject; one for each lane and worker
        self._again: asyncio.TimerHandle | None = None

    async def watch(self) -> None:
        """Set `changed` from now on. Changes that are missed while disconnected are seen at the next read.

        So are those of workers on other leaf nodes: the keys of another domain are not passed on to this one.
        """
        for subjects in dict.fromkeys((LEASE_SUBJECTS, self._client.on_wire(LEASE_SUBJECTS))):
            await self._client.subscribe(subjects, cb=self._on_write)

    async def try_elsewhere(self) -> None:
        """Connect to another server of the cluster, if one is known: the present one may be cut off from the others."""
        if len(self._client.servers) > 1 and self._client.is_connected:
            _log.warning("nobody answers for the leases; trying another server of the cluster")
            await self._client.force_reconnect()

    async def read(self) -> LeaseTable:
        """Read the bucket from its leader. Raises RelayError. Cancelling is safe."""
        info = await api_request(
            self._client, api_stream_info(LEASE_STREAM), {"subjects_filter": LEASE_SUBJECTS}, timeout_s=self._timeout_s
        )
        subjects: list[str] = sorted(info["state"].get("subjects") or {})
        entries = [entry for entry in await asyncio.gather(*map(self._read, subjects)) if entry is not None]
        self._last_values = {
            subject: self._last_values[subject] for subject in subjects if subject in self._last_values
        }
        told_at_s = dt.datetime.fromisoformat(info["ts"]).timestamp()
        workers: dict[str, float] = {}
        owners: dict[int, str] = {}
        for entry in entries:
            match entry.key.split("."), entry.value:
                case _, None:
                    pass  # deleted
                case ["worker", worker], _:
                    workers[worker] = max(0.0, told_at_s - entry.stored_at_s)
                case ["lane", lane], str(owner) if _LANE.fullmatch(lane):
                    owners[int(lane)] = owner
                case _:
                    pass  # not a key of the relay
        revisions = {entry.key: entry.revision for entry in entries}
        floors = {lane: entry.floor for entry in entries if entry.floor and (lane := _lane_of(entry.key)) is not None}
        return LeaseTable(frozenset(workers), owners, revisions, info["config"]["max_age"] / _NS_PER_S, floors, workers)

    async def announce(self) -> None:
        """Say that this worker is alive. Raises RelayError."""
        await self._put(worker_key(self.worker))

    async def depart(self) -> None:
        """Say that this worker takes no more lanes. Raises RelayError."""
        await self._put(worker_key(self.worker), deleted=True)

    async def acquire(self, lane: int, table: LeaseTable) -> Lease | None:
        """Take a lane that is free or ours in `table`; None if another worker was faster. Raises RelayError."""
        assert table.owners.get(lane, self.worker) == self.worker, "another's lane is not taken"
        self._floors.inherit(lane, table.floors.get(lane))
        return await self._write_lease(lane, table.revisions.get(lane_key(lane), 0))

    async def renew(self, lease: Lease) -> Lease | None:
        """Keep a lane for another `ttl_s`; None if the lease was lost. Raises RelayError."""
        renewed = await self._write_lease(lease.lane, lease.revision)
        if renewed is None:
            # An earlier renewal may have been stored although its confirmation was lost.
            entry = await self._read(_subject(lane_key(lease.lane)))
            if entry is not None and entry.value == self.worker:
                renewed = await self._write_lease(lease.lane, entry.revision)
        return renewed

    async def release(self, lease: Lease) -> None:
        """Delete the lease, so that the lane's next owner can start at once; ignores a lost one. Raises RelayError."""
        try:
            await self._put(lane_key(lease.lane), after=lease.revision, deleted=True, lane=lease.lane)
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise

    @property
    def _timeout_s(self) -> float:
        # Short, because a leader that has just died never answers, and the next leader answers at once.
        return self.ttl_s / 3

    async def _write_lease(self, lane: int, after: int) -> Lease | None:
        # Not the event loop's clock: uvloop reads it once per turn, so a process that was stopped for a while would
        # still believe that its leases are valid.
        good_until_s = monotonic() + self.ttl_s
        try:
            revision = await self._put(lane_key(lane), after=after, lane=lane)
        except JetStreamError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return None
            raise
        return Lease(lane, revision, good_until_s)

    async def _put(self, key: str, *, after: int | None = None, deleted: bool = False, lane: int | None = None) -> int:
        headers = {} if after is None else {_EXPECTED_REVISION: str(after)}
        if lane is not None and (floor := self._floors.header(lane)) is not None:
            headers[FLOOR_HEADER] = floor
        if deleted:
            headers[_OPERATION] = "DEL"
        value = b"" if deleted else self.worker.encode()
        ack = await publish_confirmed(self._client, _subject(key), value, headers, timeout_s=self._timeout_s)
        return ack.sequence

    async def _read(self, subject: str) -> _Entry | None:
        message = await find_message(self._client, LEASE_STREAM, {"last_by_subj": subject}, timeout_s=self._timeout_s)
        if message is None:
            return None  # it expired just now
        headers, body = message.headers, message.body
        deleted = _OPERATION in headers or is_marker(headers, body)
        value = None if deleted else body.decode(errors="replace")
        return _Entry(_key(subject), value, message.sequence, headers.get(FLOOR_HEADER), message.stored_at_s)

    async def _on_write(self, message: Msg) -> None:
        """Set `changed`, unless the write only renewed an entry.

        It is set once more after a while: a write can be heard before it is stored, and a read would not find it yet.
        """
        value = None if _OPERATION in (message.headers or {}) else message.data
        subject = _subject(_key(message.subject))
        if value is None or self._last_values.get(subject) != value:
            self.changed.set()
            if self._again is not None:
                self._again.cancel()
            self._again = asyncio.get_running_loop().call_later(_STORED_AFTER_S, self.changed.set)
        if value is None:
            self._last_values.pop(subject, None)
        else:
            self._last_values[subject] = value


def _lane_of(key: str) -> int | None:
    kind, _, lane = key.partition(".")
    return int(lane) if kind == "lane" and _LANE.fullmatch(lane) else None


def _subject(key: str) -> str:
    return LEASE_SUBJECTS.removesuffix(">") + key


def _key(subject: str) -> str:
    return subject.rpartition(LEASE_SUBJECTS.removesuffix(">"))[2]  # it may have the API's prefix before it
