"""How many bytes of updates a worker has at hand and on request, and how its lanes share them.

What is at hand is bounded by the memory for updates. What is on request is bounded more tightly. The server keeps what
it has sent and we have not read in a buffer, and disconnects a client with more than `max_pending` (64 MB by default)
in it. And it starts the clock of `ack_wait` when it puts a delivery into that buffer, so no more may be on request than
arrives well within that time.

Each lane has an equal share. An update that is larger than what a lane may ask for goes *alone*: it is requested by
itself, without a limit of bytes, by at most two lanes at a time.
"""

from collections.abc import Callable
from typing import Final

from relay.contract.sizes import MAX_FRAME_BYTES

MAX_ON_REQUEST_BYTES: Final = 24 * 1024 * 1024
"""On request at a time, all lanes together. With two updates that go alone, or once more after pulls were made anew,
this stays below the server's default `max_pending`."""
LARGEST_BYTES: Final = MAX_FRAME_BYTES
"""How large an update that goes alone is taken to be until it has come."""
_PER_BYTE_AT_HAND: Final = 2
"""Bytes of memory for each byte at hand. The second is for what is read, decoded, and written at the moment."""
_ALONE: Final = 0.25
"""The part of the memory that is kept for updates that go alone."""
_OF_ACK_WAIT: Final = 0.25
"""The part of `ack_wait` in which everything that is on request must be able to arrive.

So no delivery waits for longer than `ack_wait` in a buffer, where no `+WPI` is sent for it, unless the link is four
times as slow as it was taken to be, or a single update takes that long: see docs/failures.md.
"""
_UNKNOWN_BYTES_PER_S: Final = 4_000_000
"""How fast deliveries are taken to arrive until that has been seen."""
LEAST_REQUEST_BYTES: Final = 16 * 1024
_ALONE_AT_A_TIME: Final = 2
"""Two, so that one can arrive while the other is handled."""
_UNBOUNDED: Final = 1 << 60


class Share:
    """One lane's part; made by `Memory.join`."""

    def __init__(self, memory: "Memory") -> None:
        self.memory = memory
        self.at_hand_bytes = 0
        """What the lane has at hand; the lane counts it."""
        self.asked_bytes = 0
        self.came_bytes = 0
        """What was asked for, without what was given back, and what has come of it; the pull counts both."""
        self.held = False
        """The lane waits for everything that was delivered before, so it takes that in whatever its share is."""
        self.on_room: Callable[[], None] | None = None
        """Called when the lane had to wait for another one, and may go on."""

    @property
    def on_request_bytes(self) -> int:
        """What the server may still send without being asked again."""
        return max(0, self.asked_bytes - self.came_bytes)

    @property
    def request_bytes(self) -> int:
        """How much the lane may have on request at most."""
        return min(self.memory.request_bytes, self.memory.share_bytes)

    @property
    def free_bytes(self) -> int:
        """How much more the lane may ask for."""
        free = self.request_bytes - self.on_request_bytes
        if self.held:
            return free
        return min(free, self.memory.share_bytes - self.at_hand_bytes - self.on_request_bytes)

    @property
    def overdraft_bytes(self) -> int:
        """By how much it exceeds its share."""
        return max(0, self.at_hand_bytes + self.on_request_bytes - self.memory.share_bytes)

    @property
    def is_full(self) -> bool:
        """Whether the lane takes nothing more until it has settled something, or another lane has."""
        used_up = self.at_hand_bytes + LEAST_REQUEST_BYTES > self.memory.share_bytes
        return used_up or self in self.memory.waiting

    def may_go_alone(self) -> bool:
        """Whether the lane may request one update of any size; if not, `on_room` is called when it may."""
        return self.memory.may_go_alone(self)

    def go_alone(self) -> None:
        """It requests one update of any size."""
        self.memory.alone.add(self)
        self.asked_bytes += LARGEST_BYTES

    def nothing_on_request(self) -> None:
        """All that was on request has come, or its request has ended."""
        self.asked_bytes = self.came_bytes = 0
        self.memory.alone.discard(self)
        self.memory.wake()


class Memory:
    """The memory for updates of one worker.

    Args:
        memory_bytes: RELAY_MEMORY_MB in bytes.
        ack_wait_s: how long the server waits before it delivers an update again.
        lanes: how many lanes there are, of all workers. What a lane may have on request is divided by these, not by
            those that are driven here: a request that was made while they were few would go on when they are many, and
            what it asks for would keep the room for updates that go alone.
    """

    def __init__(self, memory_bytes: int = _UNBOUNDED, ack_wait_s: float = 1.0, lanes: int = 1) -> None:
        self.alone: set[Share] = set()
        """The lanes that have requested an update of any size."""
        self.arriving_bytes_per_s: float | None = None
        """How fast deliveries arrive while the server has some; None if that is not known yet."""
        self.ack_wait_s = ack_wait_s
        self.waiting: dict[Share, None] = {}
        """The lanes that wait until they may go alone, the longest first."""
        self._at_hand_bytes = memory_bytes // _PER_BYTE_AT_HAND
        self._lanes = lanes
        self._shares: dict[Share, None] = {}

    def expect_ack_wait(self, ack_wait_s: float) -> None:
        """The server waits this long: the setting was changed, or is another one here."""
        self.ack_wait_s = ack_wait_s

    def join(self) -> Share:
        """A lane is driven from now on."""
        share = Share(self)
        self._shares[share] = None
        return share

    def leave(self, share: Share) -> None:
        """The lane is not driven any more; what it has at hand is forgotten."""
        self._shares.pop(share, None)
        self.waiting.pop(share, None)
        share.nothing_on_request()

    @property
    def share_bytes(self) -> int:
        """How much each lane may have at hand and on request."""
        return int(self._at_hand_bytes * (1 - _ALONE)) // max(1, len(self._shares))

    @property
    def request_bytes(self) -> int:
        """How much each lane may have on request."""
        arriving_bytes_per_s = self.arriving_bytes_per_s or _UNKNOWN_BYTES_PER_S
        in_time = arriving_bytes_per_s * self.ack_wait_s * _OF_ACK_WAIT
        lanes = max(self._lanes, len(self._shares))
        return max(LEAST_REQUEST_BYTES, int(min(in_time, MAX_ON_REQUEST_BYTES) / lanes))

    @property
    def at_hand_bytes(self) -> int:
        """What all lanes have at hand."""
        return sum(share.at_hand_bytes for share in self._shares)

    @property
    def on_request_bytes(self) -> int:
        """What all lanes have on request."""
        return sum(share.on_request_bytes for share in self._shares)

    def may_go_alone(self, share: Share) -> bool:
        """Whether this lane may request one update of any size; if not, it waits for that."""
        if len(self.alone) < _ALONE_AT_A_TIME and (share.held or self._has_room_beyond_shares(share)):
            self.waiting.pop(share, None)
            return True
        self.waiting[share] = None
        return False

    def wake(self) -> None:
        """A lane has less at hand or on request: lanes that waited for that may go on."""
        for share in list(self.waiting):
            if share.on_room is not None:
                share.on_room()

    def _has_room_beyond_shares(self, share: Share) -> bool:
        if share.at_hand_bytes + LARGEST_BYTES <= self.share_bytes:
            return True
        overdrafts = sum(each.overdraft_bytes for each in self._shares)
        return not overdrafts or overdrafts + LARGEST_BYTES <= self._at_hand_bytes * _ALONE
