"""Protocols for what the path of an update uses from outside the core."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from relay.core.continuity import ConsumerState
from relay.core.lane import Lane
from relay.core.memory import Share
from relay.core.session import Pushed
from relay.core.update import DeliveryLike, Settled


class Source(Protocol):
    """Where a lane's deliveries come from; see path/consumer.py."""

    @property
    def trouble(self) -> str | None: ...

    starved: bool
    """It would ask for more updates if there were room for them: call `top_up` when there is."""

    async def run(self) -> None: ...
    async def state(self) -> ConsumerState: ...
    def ask_again(self, sequences: Sequence[int], state: ConsumerState) -> None: ...
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
        share: Share,
        room: Callable[[], int],
        on_deliveries: Callable[[Sequence[DeliveryLike]], None],
        on_start: Callable[[ConsumerState], None],
    ) -> Source: ...


class SettlementObserver(Protocol):
    """Is told of every settled update; see path/receipts.py, observability/tracing.py. It neither waits nor raises."""

    def settled(self, settled: Settled) -> None: ...


class PushQueue(Protocol):
    """What the Facilitator pushes goes here; see path/pushes.py."""

    async def put(self, pushed: Pushed) -> None: ...


WatchAdvisories = Callable[[Lane], Coroutine[Any, Any, None]]
"""Dead-letters what JetStream gave up on in a lane, until cancelled; see path/advisories.py."""
