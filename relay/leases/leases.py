"""Leases on lanes, in the key-value bucket RELAY_LEASES: who drives which lane, and who is alive to drive one.

    lane.<n>       the worker that drives lane n: created if absent, renewed by revision, deleted when given up
    worker.<id>    a worker that is alive

The bucket's time to live ends what is not renewed. A lease is good for that long from the moment at which its
renewal was *sent*: the server starts counting later, so ours is over before anybody else's can begin.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nats.aio.msg import Msg

from relay.contract.errors import JetStreamError
from relay.contract.subjects import LEASE_STREAM, LEASE_SUBJECTS, api_stream_info, lane_key, worker_key
from relay.nats.connection import api_request, publish_confirmed
from relay.nats.err_codes import WRONG_LAST_SEQUENCE
from relay.nats.frames import FrameClient
from relay.nats.messages import find_message
from relay.observability.logs import get_logger

_log = get_logger(__name__)

_EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
_OPERATION: Final = "KV-Operation"
_LANE: Final = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drive a lane, until `good_until_s` on the monotonic clock of the process that holds it."""

    lane: int
    revision: int
    good_until_s: float


@dataclass(frozen=True, slots=True)
class View:
    """What the bucket held at one moment."""

    workers: frozenset[str]
    owners: Mapping[int, str]
    """Lanes that are driven, and by which worker."""
    revisions: Mapping[str, int]
    """The last revision of each key, also of deleted ones: what a new entry must follow."""


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    value: str | None
    """None if it was deleted."""
    revision: int


class Leases:
    """The bucket as one worker sees it.

    Args:
        worker: this worker's id: letters, digits, `-` and `_`.
        ttl_s: the bucket's time to live.
    """

    def __init__(self, nc: FrameClient, worker: str, ttl_s: float) -> None:
        self.worker = worker
        self.ttl_s = ttl_s
        self.changed = asyncio.Event()
        """Set when somebody wrote to the bucket; a hint to look, not a proof that anything changed."""
        self._nc = nc
        # Late is as bad as never: a leader that just died never answers, the next one does at once.
        self._patience_s = ttl_s / 3
        self._last_heard: dict[str, bytes] = {}  # bounded by the lanes and the workers that are alive

    async def watch(self) -> None:
        """Have `changed` set from now on. What is missed while disconnected is found at the next regular look."""
        await self._nc.subscribe(LEASE_SUBJECTS, cb=self._heard)

    async def try_elsewhere(self) -> None:
        """Connect to another server of the cluster, if one is known: this one answers, but may be cut off from it."""
        if len(self._nc.servers) > 1 and self._nc.is_connected:
            _log.warning("nobody answers for the leases; trying another server of the cluster")
            await self._nc.force_reconnect()

    async def view(self) -> View:
        """Read the bucket, from its leader. Raises RelayError if that fails."""
        info = await api_request(
            self._nc, api_stream_info(LEASE_STREAM), {"subjects_filter": LEASE_SUBJECTS}, timeout_s=self._patience_s
        )
        subjects: list[str] = sorted(info["state"].get("subjects") or {})
        entries = [entry for entry in await asyncio.gather(*map(self._read, subjects)) if entry is not None]
        self._last_heard = {subject: self._last_heard[subject] for subject in subjects if subject in self._last_heard}
        workers: set[str] = set()
        owners: dict[int, str] = {}
        for entry in entries:
            match entry.key.split("."), entry.value:
                case _, None:
                    pass  # deleted
                case ["worker", worker], _:
                    workers.add(worker)
                case ["lane", lane], str(owner) if _LANE.fullmatch(lane):
                    owners[int(lane)] = owner
                case _:
                    pass  # not ours
        return View(frozenset(workers), owners, {entry.key: entry.revision for entry in entries})

    async def announce(self) -> None:
        """Say that this worker is alive."""
        await self._put(worker_key(self.worker))

    async def depart(self) -> None:
        """Say that this worker takes no lanes any more."""
        await self._put(worker_key(self.worker), deleted=True)

    async def acquire(self, lane: int, view: View) -> Lease | None:
        """Take a lane that is free in `view`, or ours; None if somebody was quicker."""
        assert view.owners.get(lane, self.worker) == self.worker, "another's lane is not taken"
        return await self._hold(lane, view.revisions.get(lane_key(lane), 0))

    async def renew(self, lease: Lease) -> Lease | None:
        """Hold on to a lane for another `ttl_s`; None if the lease was lost."""
        renewed = await self._hold(lease.lane, lease.revision)
        if renewed is None:
            # An earlier renewal may have been stored although its confirmation was not seen.
            entry = await self._read(_subject(lane_key(lease.lane)))
            if entry is not None and entry.value == self.worker:
                renewed = await self._hold(lease.lane, entry.revision)
        return renewed

    async def release(self, lease: Lease) -> None:
        """Give a lane up, so that its next owner can start at once. A lease that was lost is left alone."""
        try:
            await self._put(lane_key(lease.lane), after=lease.revision, deleted=True)
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise

    async def _hold(self, lane: int, after: int) -> Lease | None:
        good_until_s = time.monotonic() + self.ttl_s
        try:
            revision = await self._put(lane_key(lane), after=after)
        except JetStreamError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return None
            raise
        return Lease(lane, revision, good_until_s)

    async def _put(self, key: str, *, after: int | None = None, deleted: bool = False) -> int:
        headers = {} if after is None else {_EXPECTED_REVISION: str(after)}
        if deleted:
            headers[_OPERATION] = "DEL"
        value = b"" if deleted else self.worker.encode()
        ack = await publish_confirmed(self._nc, _subject(key), value, headers, timeout_s=self._patience_s)
        return ack.sequence

    async def _read(self, subject: str) -> _Entry | None:
        message = await find_message(self._nc, LEASE_STREAM, {"last_by_subj": subject}, timeout_s=self._patience_s)
        if message is None:
            return None  # it expired just now
        value = None if _OPERATION in message.headers else message.body.decode(errors="replace")
        return _Entry(_key(subject), value, message.sequence)

    async def _heard(self, message: Msg) -> None:
        """Somebody wrote: that is news unless it only renews what was there."""
        value = None if _OPERATION in (message.headers or {}) else message.data
        if value is None or self._last_heard.get(message.subject) != value:
            self.changed.set()
        if value is None:
            self._last_heard.pop(message.subject, None)
        else:
            self._last_heard[message.subject] = value


def _subject(key: str) -> str:
    return LEASE_SUBJECTS.removesuffix(">") + key


def _key(subject: str) -> str:
    return subject.removeprefix(LEASE_SUBJECTS.removesuffix(">"))
