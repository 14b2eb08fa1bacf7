"""Which lanes this worker drives: it takes its fair share, keeps it, and releases lanes that others should have.

free, and our share ──acquire──► driven ──renew, every third of the TTL──► driven
                                    ├── the lease was lost or has ended ──► dropped
                                    └── another's share, or stopping ─────► drained, released
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from relay.contract.errors import JetStreamError, RelayError
from relay.contract.report import LostOwner
from relay.contract.subjects import lane_key
from relay.core.connect_pace import Place, place_of
from relay.leases.leases import Lease, Leases, LeaseTable
from relay.leases.share import share_out
from relay.observability.logs import get_logger
from relay.observability.metrics import HowLeft, HowTaken, Metrics
from relay.timing.clock import monotonic
from relay.timing.waiting import set_within

_log = get_logger(__name__)

_RENEWALS_PER_TTL: Final = 3


class LaneDriver(Protocol):
    """Takes a lane's updates to the Facilitator. `ours_until_s`: when the lease ends, on the monotonic clock."""

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        """Drive a lane until `leaving` is set and what is in flight is settled. Cancelling drops the lane at once."""
        ...

    def extend(self, number: int, ours_until_s: float) -> None:
        """The lease of a lane was renewed."""
        ...


@dataclass(slots=True)
class _Holding:
    """A lane that is driven here."""

    lease: Lease
    leaving: asyncio.Event
    driving: asyncio.Task[None]
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Allows one renewal or release at a time, because each must follow the revision of the one before."""
    lost: bool = False


class Ownership:
    """Takes, renews and releases this worker's lanes.

    Args:
        leases: the bucket as this worker sees it.
        lanes: how many lanes there are.
        driver_of: returns the driver of a lane.
        drain_s: how long a lane that is given up may wait for the Facilitator's answers.
        metrics: counts lanes taken and left.
        election_s: longer than a cluster takes to elect a leader. If the bucket gives no answer for this long, the
            server may be cut off from its cluster, and another server is tried.
    """

    def __init__(
        self,
        leases: Leases,
        lanes: int,
        driver_of: Callable[[int], LaneDriver],
        *,
        drain_s: float,
        metrics: Metrics,
        election_s: float = 15.0,
    ) -> None:
        self.trouble: str | None = "the lanes are not shared out yet"
        """Why no lane can be taken, in words for an operator; None while all is well."""
        self.place: Place | None = None
        """This worker's place among those that were alive when the bucket last answered; None if it never did."""
        self._leases = leases
        self._lanes = lanes
        self._driver_of = driver_of
        self._drain_s = drain_s
        self._metrics = metrics
        self._held: dict[int, _Holding] = {}
        self._seen_driven: dict[int, str] = {}
        """The owners of lanes that had one when they were last seen in the bucket."""
        self._lost: tuple[str, int, float] | None = None
        """The last owner whose lease ended, its lane, and when that was taken here, on the monotonic clock."""
        self._election_s = election_s
        self._answered_s = monotonic()
        """When the bucket last answered, or another server was tried."""

    @property
    def lanes(self) -> list[int]:
        """The lanes that are driven here."""
        return sorted(self._held)

    @property
    def lost_owner(self) -> LostOwner | None:
        """The worker from which a lane was taken last because its lease had ended; None if there was none."""
        if self._lost is None:
            return None
        worker, lane, taken_s = self._lost
        return LostOwner(worker, lane, monotonic() - taken_s)

    @property
    def _renewal_s(self) -> float:
        return self._leases.ttl_s / _RENEWALS_PER_TTL

    async def run(self, stop: asyncio.Event) -> None:
        """Take and renew lanes until `stop` is set; then release every lane as soon as it is drained.

        If cancelled, it releases nothing: the leases expire.
        """
        await self._leases.watch()
        async with asyncio.TaskGroup() as others:
            renewing = others.create_task(self._keep_renewing(stop))
            others.create_task(self._wake_at(stop))
            async with asyncio.TaskGroup() as holdings:
                while not stop.is_set():
                    self._leases.changed.clear()
                    await self._rebalance(holdings)
                    await set_within(self._leases.changed, self._renewal_s)
                with contextlib.suppress(RelayError):  # if this fails, its announcement expires
                    await self._leases.depart()
                for holding in self._held.values():
                    self._leave(holding)
            renewing.cancel()  # every lane is released

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._leases.changed.set()

    async def _rebalance(self, holdings: asyncio.TaskGroup) -> None:
        try:
            await self._move_towards_shares(holdings)
        except RelayError as error:
            trouble = f"the lanes cannot be shared out: {error}"
            if trouble != self.trouble:
                _log.error(trouble)
            self.trouble = trouble
            if not isinstance(error, JetStreamError) and monotonic() >= self._answered_s + max(
                self._election_s, 3 * self._leases.ttl_s
            ):
                self._answered_s = monotonic()
                await self._leases.try_elsewhere()
        else:
            self.trouble = None
            self._answered_s = monotonic()

    async def _move_towards_shares(self, holdings: asyncio.TaskGroup) -> None:
        table = await self._leases.read()
        self._leases.ttl_s = table.ttl_s or self._leases.ttl_s  # 0: somebody lets entries live for ever
        how_free: dict[int, HowTaken] = {lane: self._how_free(lane, table) for lane in range(self._lanes)}
        me = self._leases.worker
        self.place = place_of(me, table.workers)
        for lane, worker in share_out(self._lanes, table.workers | {me}, table.owners).items():
            if worker != me and lane in self._held:
                self._leave(self._held[lane])
            elif worker == me and lane not in self._held and table.owners.get(lane, me) == me:
                # The lane is free, or it is ours without our knowledge, because the confirmation was lost.
                lease = await self._leases.acquire(lane, table)
                if lease is not None:
                    self._take(lease, how_free[lane], holdings)

    def _how_free(self, lane: int, table: LeaseTable) -> HowTaken:
        """Why the lane has no owner in `table`, if it has none. Call it once for each table."""
        if lane in table.owners:
            self._seen_driven[lane] = table.owners[lane]
        elif lane_key(lane) in table.revisions:  # releasing leaves a deleted key for as long as a lease lasts
            self._seen_driven.pop(lane, None)
            return "handed_over"
        return "expired" if lane in self._seen_driven else "free"

    def _take(self, lease: Lease, how: HowTaken, holdings: asyncio.TaskGroup) -> None:
        _log.info("lane taken", lane=lease.lane, worker=self._leases.worker, how=how)
        self._metrics.lane_taken(lease.lane, how)
        if how == "expired":
            self._lost = (self._seen_driven[lease.lane], lease.lane, monotonic())
        leaving = asyncio.Event()
        driving = holdings.create_task(self._driver_of(lease.lane).drive(lease.lane, lease.good_until_s, leaving))
        holding = self._held[lease.lane] = _Holding(lease, leaving, driving)
        holdings.create_task(self._release_after(holding))

    def _leave(self, holding: _Holding) -> None:
        """Begin to drain the lane; cancel the driver after `drain_s`."""
        if not holding.leaving.is_set():
            holding.leaving.set()
            asyncio.get_running_loop().call_later(self._drain_s, holding.driving.cancel)

    async def _release_after(self, holding: _Holding) -> None:
        """Wait until the lane is no longer driven, and release it."""
        lane = holding.lease.lane
        await asyncio.wait({holding.driving})
        async with holding.writing:
            del self._held[lane]
            if not holding.lost:
                with contextlib.suppress(RelayError):  # if this fails, the lease expires
                    await self._leases.release(holding.lease)
        undrained = holding.driving.cancelled()
        how: HowLeft = "lost" if holding.lost else "given_up_undrained" if undrained else "given_up"
        self._metrics.lane_left(lane, how)
        _log.info(f"lane {how.replace('_', ' ')}", lane=lane, worker=self._leases.worker)
        self._leases.changed.set()

    async def _keep_renewing(self, stop: asyncio.Event) -> None:
        """Renew leases in time. Not part of rebalancing, because lanes that are being drained need their leases too."""
        while True:
            announcing = [] if stop.is_set() else [self._announce()]
            await asyncio.gather(*announcing, *map(self._renew, list(self._held.values())))
            await asyncio.sleep(self._renewal_s)

    async def _announce(self) -> None:
        with contextlib.suppress(RelayError):  # rebalancing reports the error
            await self._leases.announce()

    async def _renew(self, holding: _Holding) -> None:
        lane = holding.lease.lane
        async with holding.writing:
            if self._held.get(lane) is not holding:
                return  # it was released meanwhile
            renewed: Lease | None = holding.lease
            with contextlib.suppress(RelayError):  # the lease is still valid for a while
                renewed = await self._leases.renew(holding.lease)
            if renewed is not None and monotonic() < renewed.good_until_s:
                holding.lease = renewed
                self._driver_of(lane).extend(lane, renewed.good_until_s)
            else:
                holding.lost = True
                holding.driving.cancel()
