"""Which lanes this worker drives: it takes its fair share, holds on to it, and gives up what others should have.

free, and our share ──acquire──► driven ──renew, every third of the TTL──► driven
                                    ├── the lease was lost, or is over ──► dropped
                                    └── another's share, or stopping ────► drained, released
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from relay.contract.errors import JetStreamError, RelayError
from relay.contract.subjects import lane_key
from relay.leases.leases import Lease, Leases, View
from relay.leases.share import share_out
from relay.observability.logs import get_logger
from relay.observability.metrics import HowLeft, HowTaken, Metrics

_log = get_logger(__name__)

_RENEWALS_PER_TTL: Final = 3
_ELECTION_S: Final = 15.0
"""Longer than a cluster takes to elect a leader. If nobody answers for that long, this server may be cut off."""


class LaneDriver(Protocol):
    """Takes a lane's updates to the Facilitator. `ours_until_s` is on the monotonic clock."""

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        """Drive a lane until `leaving` is set and what is in flight is settled; cancelling drops the lane at once."""
        ...

    def extend(self, number: int, ours_until_s: float) -> None:
        """The lease of a lane was renewed."""
        ...


@dataclass(slots=True)
class _Holding:
    """A lane that is ours."""

    lease: Lease
    leaving: asyncio.Event
    driving: asyncio.Task[None]
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One renewal or release at a time, because each must follow the revision of the one before."""
    lost: bool = False


class Ownership:
    """Takes part in sharing out the lanes.

    Args:
        lanes: how many lanes there are.
        driver_of: who drives a given lane.
        drain_s: how long a lane may take to finish what is with the Facilitator when it is given up.
    """

    def __init__(
        self, leases: Leases, lanes: int, driver_of: Callable[[int], LaneDriver], *, drain_s: float, metrics: Metrics
    ) -> None:
        self.trouble: str | None = "the lanes are not shared out yet"
        """Why no lane can be taken, in words for an operator; None while all is well."""
        self._leases = leases
        self._lanes = lanes
        self._driver_of = driver_of
        self._drain_s = drain_s
        self._metrics = metrics
        self._held: dict[int, _Holding] = {}
        self._seen_driven: set[int] = set()
        """Lanes that were last seen to have an owner."""
        self._departing = False
        self._renewal_s = leases.ttl_s / _RENEWALS_PER_TTL
        self._patience_s = max(_ELECTION_S, 3 * leases.ttl_s)
        self._heard_s = time.monotonic()
        """When the bucket was last heard of, or another server tried."""

    @property
    def lanes(self) -> list[int]:
        """The lanes that are driven here."""
        return sorted(self._held)

    async def run(self, stop: asyncio.Event) -> None:
        """Take part until `stop` is set; then give up every lane, each as soon as it is drained."""
        await self._leases.watch()
        async with asyncio.TaskGroup() as holdings, asyncio.TaskGroup() as others:
            renewing = others.create_task(self._keep_renewing())
            stopping = others.create_task(stop.wait())
            while not stop.is_set():
                self._leases.changed.clear()
                await self._rebalance(holdings)
                looking = others.create_task(self._leases.changed.wait())
                await asyncio.wait({looking, stopping}, timeout=self._renewal_s, return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
            self._departing = True
            with contextlib.suppress(RelayError):  # then it is forgotten when its time is over
                await self._leases.depart()
            await self._leave_all()
            renewing.cancel()

    async def _rebalance(self, group: asyncio.TaskGroup) -> None:
        try:
            await self._move_towards_shares(group)
        except RelayError as error:
            trouble = f"the lanes cannot be shared out: {error}"
            if trouble != self.trouble:
                _log.error(trouble)
            self.trouble = trouble
            if not isinstance(error, JetStreamError) and time.monotonic() >= self._heard_s + self._patience_s:
                self._heard_s = time.monotonic()
                await self._leases.try_elsewhere()
        else:
            self.trouble = None
            self._heard_s = time.monotonic()

    async def _move_towards_shares(self, group: asyncio.TaskGroup) -> None:
        view = await self._leases.view()
        free: dict[int, HowTaken] = {lane: self._how_free(lane, view) for lane in range(self._lanes)}
        me = self._leases.worker
        for lane, worker in share_out(self._lanes, view.workers | {me}, view.owners).items():
            if worker != me and lane in self._held:
                self._leave(self._held[lane])
            elif worker == me and lane not in self._held and view.owners.get(lane, me) == me:
                # Free; or ours without our knowing, because a confirmation was not seen.
                lease = await self._leases.acquire(lane, view)
                if lease is not None:
                    self._take(lease, free[lane], group)

    def _how_free(self, lane: int, view: View) -> HowTaken:
        """How it came that the lane has no owner in `view`, if it has none."""
        if lane in view.owners:
            self._seen_driven.add(lane)
        elif lane_key(lane) in view.revisions:  # who gives a lane up leaves a mark, for as long as a lease lasts
            self._seen_driven.discard(lane)
            return "handed_over"
        return "expired" if lane in self._seen_driven else "free"

    def _take(self, lease: Lease, how: HowTaken, group: asyncio.TaskGroup) -> None:
        _log.info("lane taken", lane=lease.lane, worker=self._leases.worker, how=how)
        self._metrics.lane_taken(lease.lane, how)
        leaving = asyncio.Event()
        driving = group.create_task(self._driver_of(lease.lane).drive(lease.lane, lease.good_until_s, leaving))
        holding = self._held[lease.lane] = _Holding(lease, leaving, driving)
        group.create_task(self._hold(holding))

    async def _hold(self, holding: _Holding) -> None:
        """See the lane to the end of its driving, and release it."""
        lane = holding.lease.lane
        await asyncio.wait({holding.driving})
        async with holding.writing:
            del self._held[lane]
            if not holding.lost:
                with contextlib.suppress(RelayError):  # then it is free when the lease is over
                    await self._leases.release(holding.lease)
        undrained = holding.driving.cancelled()
        how: HowLeft = "lost" if holding.lost else "given_up_undrained" if undrained else "given_up"
        self._metrics.lane_left(lane, how)
        _log.info(f"lane {how.replace('_', ' ')}", lane=lane, worker=self._leases.worker)
        self._leases.changed.set()

    def _leave(self, holding: _Holding) -> None:
        if not holding.leaving.is_set():
            holding.leaving.set()
            asyncio.get_running_loop().call_later(self._drain_s, holding.driving.cancel)

    async def _leave_all(self) -> None:
        while self._held:
            self._leases.changed.clear()
            for holding in self._held.values():
                self._leave(holding)
            await self._leases.changed.wait()

    async def _keep_renewing(self) -> None:
        """Renew in time. Apart from the rebalancing, because a lane that drains must be held on to as well."""
        while True:
            renewals = [self._renew(holding) for holding in list(self._held.values())]
            await asyncio.gather(self._announce(), *renewals)
            await asyncio.sleep(self._renewal_s)

    async def _announce(self) -> None:
        if self._departing:
            return
        with contextlib.suppress(RelayError):  # the look at the bucket says what is wrong
            await self._leases.announce()

    async def _renew(self, holding: _Holding) -> None:
        lane = holding.lease.lane
        async with holding.writing:
            if self._held.get(lane) is not holding:
                return  # released meanwhile
            renewed: Lease | None = holding.lease
            with contextlib.suppress(RelayError):  # the lease is good for a while yet
                renewed = await self._leases.renew(holding.lease)
            if renewed is not None and time.monotonic() < renewed.good_until_s:
                holding.lease = renewed
                self._driver_of(lane).extend(lane, renewed.good_until_s)
            else:
                holding.lost = True
                holding.driving.cancel()
