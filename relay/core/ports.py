"""What the path of an update works with, whoever made it: the ports of the core, as Protocols."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from relay.core.continuity import ConsumerState
from relay.core.lane import Lane, Update
from relay.core.session import Pushed
from relay.core.verdict import DeadLetter, Outcome


class UpdateLike(Protocol):
    """An update as it was published: what a dead letter is made of."""

    @property
    def subject(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def sequence(self) -> int: ...
    @property
    def stored_at_s(self) -> float: ...


class DeliveryLike(UpdateLike, Protocol):
    """One delivery of an update; see broker/delivery.py."""

    @property
    def consumer_sequence(self) -> int: ...
    @property
    def deliveries(self) -> int: ...
    def ack(self) -> None: ...
    def nak(self) -> None: ...
    def in_progress(self) -> None: ...
    def term(self, reason: str) -> None: ...


InFlight = Update[DeliveryLike]
"""An update at hand, as it goes from its lane through a session."""


class Source(Protocol):
    """Where a lane's deliveries come from; see broker/consumer.py."""

    trouble: str | None

    async def run(self) -> None: ...
    async def state(self) -> ConsumerState: ...
    def top_up(self) -> None: ...
    def restart(self) -> None: ...
    def drain(self) -> None: ...
    async def confirm(self) -> None: ...


class OpenSource(Protocol):
    """Makes the source of a lane."""

    def __call__(
        self,
        lane: int,
        *,
        room: Callable[[], int],
        on_delivery: Callable[[DeliveryLike], None],
        on_start: Callable[[ConsumerState], None],
    ) -> Source: ...


class Sink(Protocol):
    """The connection to the Facilitator; see facilitator.py. It asks for what to send when it is woken."""

    def wake(self) -> None: ...


class DeadLetterStream(Protocol):
    """See broker/dead_letters.py."""

    async def look(self) -> None: ...
    def may_hold(self, delivery: DeliveryLike, made_at_s: float) -> bool: ...
    async def holds(self, update: UpdateLike) -> bool: ...
    async def write(self, delivery: UpdateLike, letter: DeadLetter, attempts: int) -> None: ...


class SettlementObserver(Protocol):
    """Where it is told what became of updates; see broker/receipts.py, tracing.py. It must neither wait nor raise."""

    def settled(self, update: InFlight, outcome: Outcome) -> None: ...


WatchAdvisories = Callable[[Lane[DeliveryLike]], Coroutine[Any, Any, None]]
"""Dead-letters what JetStream gave up on in a lane, until cancelled; see broker/advisories.py."""


class PushQueue(Protocol):
    """What the Facilitator pushes goes here; see broker/requests.py."""

    async def put(self, pushed: Pushed) -> None: ...
