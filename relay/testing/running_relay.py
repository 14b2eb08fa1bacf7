"""A real relay for tests: an embedded nats-server, a relay and a simulated Facilitator, in a thread."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, Self, TypeVar

from relay.contract.environment import load_settings
from relay.contract.errors import LocalServerError
from relay.contract.settings import Settings
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.service.app import Relay

R = TypeVar("R")
_START_S: Final = 30.0
_STOP_S: Final = 30.0


class RunningRelay:
    """A nats-server, a relay and a simulated Facilitator, for as long as the `with` block lasts.

    It works in a thread of its own, so programs and tests with and without an event loop can use it.

    Attributes:
        nats_url: where to publish and to ask.
        variables: the same as the variables of `from_environment`.
    """

    def __init__(self) -> None:
        self.nats_url = ""
        self.variables: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay-for-tests", daemon=True)
        self._facilitator = FacilitatorSimulator()
        self._opened = AsyncExitStack()

    def statuses(self, job: str) -> list[str]:
        """The statuses of a job that the Facilitator has, in the order in which it got them."""

        async def look() -> list[str]:
            return [row.status for row in self._facilitator.rows_of(job)]

        return self._run(look(), _START_S)

    def wait_for_status(self, job: str, status: str, timeout_s: float = 15.0) -> None:
        """Wait until a status of the job has reached the Facilitator. Raises TimeoutError."""

        def there(facilitator: FacilitatorSimulator) -> bool:
            return any(row.status == status for row in facilitator.rows_of(job))

        self._run(self._facilitator.wait_for(there, timeout_s), timeout_s + 1)

    def push_job_request(self, job: str, **fields: Any) -> None:
        """Let the Facilitator push a `V2JobRequest` with these further fields."""
        self._run(self._facilitator.push_job_request(job, **fields), _START_S)

    def __enter__(self) -> Self:
        """Start all three. Raises LocalServerError, which says why, if one does not start in time."""
        self._thread.start()
        try:
            self._run(self._start(), None)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._run(self._opened.aclose(), _STOP_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, R], timeout_s: float | None) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def _start(self) -> None:
        server = await self._opened.enter_async_context(NatsServer())
        await self._opened.enter_async_context(self._facilitator)
        self.nats_url = server.url
        self.variables = {"RELAY_NATS_URL": server.url}
        relay = Relay(self._settings(), None, provision_first=True)
        stop = asyncio.Event()
        running = asyncio.create_task(relay.run(stop))

        async def end() -> None:
            stop.set()
            await running

        self._opened.push_async_callback(end)
        starting = asyncio.create_task(_started(relay))
        done, _ = await asyncio.wait({running, starting}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if running in done:
            running.result()
        if starting not in done:
            missing = "; ".join(relay.worker_status.missing()) or "its status service does not run"
            raise LocalServerError(f"the relay did not start within {_START_S:g} s: {missing}", server.log_tail)

    def _settings(self) -> Settings:
        others = {
            "RELAY_FACILITATOR_URL": self._facilitator.url,
            "RELAY_FACILITATOR_AUTH": "none",
            "RELAY_HTTP_PORT": "0",
            "RELAY_RECEIPTS": "true",
            "RELAY_BACKOFF_INITIAL": "0.05",
        }
        return load_settings({**self.variables, **others}, None)


async def _started(relay: Relay) -> None:
    await relay.ready.wait()
    await relay.serving.wait()
