"""The pull loop of one lane: a steady flow of deliveries, without batches to wait for.

`fetch()` of nats-py waits for a whole batch and sometimes stalls. So the loop speaks JetStream's own pull protocol: one
inbox, more requests when half of what was asked for has come, and idle heartbeats to notice that no server serves them.
Each start, also after a reconnect, takes a fresh inbox: the server may still serve requests for the old one, and their
deliveries could not be told from those of new requests.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.subscription import Subscription

from relay.contract.errors import JetStreamError, RelayError
from relay.contract.subjects import api_consumer_info, api_pull
from relay.contract.text import describe
from relay.core.continuity import ConsumerState
from relay.core.memory import Share
from relay.core.pull import PullWindow, Signal
from relay.core.stall import StallWatch
from relay.nats.ack_subject import ack_of_nothing, ack_subject, origin_of, parse_ack_subject
from relay.nats.err_codes import CONSUMER_NOT_FOUND
from relay.nats.frames import FrameClient, publication
from relay.nats.headers import DESCRIPTION, STATUS, parse_headers
from relay.nats.jetstream import api_request
from relay.observability.logs import get_logger
from relay.path.delivery import Delivery
from relay.timing.waiting import set_within
from relay.topology.consumer_state import consumer_state_of
from relay.topology.lane_growth import WAITS_KEY

_log = get_logger(__name__)

_NS_PER_S: Final = 1_000_000_000
_RETRY_S: Final = 1.0
"""How long to wait before asking again for a consumer that is missing or does not answer."""
_RESTART_S: Final = 0.1
"""How long to wait before pulling again, so that a server in trouble is not asked in a tight loop."""
_STATE_TIMEOUT_S: Final = 1.0
"""How long to wait for a consumer's leader: one that just died never answers, the next one does at once."""
_CONFIRM_TIMEOUT_S: Final = 2.0
_NOT_FOUND: Final = 404
_PENDING_HEADER: Final = "Nats-Pending-Messages"
_PENDING_BYTES_HEADER: Final = "Nats-Pending-Bytes"
_size_of = attrgetter("size_bytes")


class PullConsumer:
    """Pulls from a durable consumer as long as it `run`s.

    Args:
        client: a connection that reconnects by itself.
        stream, name: the consumer. While it does not exist, the loop logs that once and asks again.
        share: the lane's part of the memory for updates.
        batch, expires_s: see PullWindow.
        room: how many more updates can be taken in now; 0 stops new requests.
        on_deliveries: called with the deliveries that were read together, in the order of arrival; at least one.
        on_start: called with the consumer's state at each start, before the first request.
        stalled_after_s: after how many seconds in which nothing was given of what waits that counts as trouble.
    """

    def __init__(
        self,
        client: FrameClient,
        stream: str,
        name: str,
        *,
        share: Share,
        batch: int,
        expires_s: float,
        room: Callable[[], int],
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_start: Callable[[ConsumerState], None],
        stalled_after_s: float = 10.0,
    ) -> None:
        self.name = name
        self._trouble: str | None = "it has not started yet"
        self._stall: str | None = None
        self._stall_watch = StallWatch(stalled_after_s)
        self._stalled_after_s = stalled_after_s
        self._last_status = ""
        """The last status with which the server ended a request, since something was delivered."""
        self.starved = True
        """It would ask for more if there were room: call `top_up` when there is."""
        self._client = client
        self._stream = stream
        self._requests_on = client.on_wire(api_pull(stream, name)).encode()
        self._room = room
        self._on_deliveries = on_deliveries
        self._on_start = on_start
        self._window = PullWindow(batch, expires_s, share)
        self._subscription: Subscription | None = None
        self._inbox = b""
        """Where deliveries come; empty while there are none to ask for."""
        self._wake = asyncio.Event()
        self._draining = asyncio.Event()
        self._signal = Signal.ASK_AGAIN
        self._heard_s = 0.0
        self._failure: Exception | None = None
        self._made_at_s = 0.0
        self._replaced = False
        self._last_reply = b""
        """The ACK subject of the last delivery."""

    @property
    def trouble(self) -> str | None:
        """Why nothing is being pulled, or nothing is given, in words for an operator; None while all is well."""
        return self._trouble or self._stall

    def top_up(self) -> None:
        """Ask for more updates, if there is room for them again."""
        self._ask()

    def restart(self) -> None:
        """The connection was lost and made again: the server has forgotten our requests."""
        self._end_pulling(Signal.START_OVER)

    async def state(self) -> ConsumerState:
        """Ask the server for the consumer's state. Raises RelayError if it cannot be had. Cancelling it is safe."""
        info = await api_request(self._client, api_consumer_info(self._stream, self.name), timeout_s=_STATE_TIMEOUT_S)
        state = consumer_state_of(info)
        self._made_at_s = self._made_at_s or state.made_at_s
        if state.made_at_s != self._made_at_s and not self._replaced:
            _log.warning("the consumer was made anew: its lane begins anew as well", consumer=self.name)
            self._replaced = True
            self._wake.set()
        return state

    def ask_again(self, sequences: Sequence[int], state: ConsumerState) -> None:
        """Ask for these updates to be delivered again, whatever time it is on the server's clock.

        The server ignores those that are not pending. `state` is the latest one of the consumer.
        """
        if not self._client.is_connected:
            return  # pulling starts over
        origin = origin_of(self._last_reply)
        subjects = (
            ack_subject(self._stream, self.name, sequence, state.delivered_count, origin) for sequence in sequences
        )
        self._client.write(b"".join([publication(subject.encode(), b"-NAK") for subject in subjects]))

    async def confirm(self) -> None:
        """Wait until the server has processed every acknowledgement sent so far; gives up after 2 seconds.

        It also gives up if the connection is lost. Cancelling it is safe.
        """
        subject = ack_of_nothing(self._stream, self.name, origin_of(self._last_reply))
        try:
            await self._client.request(subject, b"+WPI", timeout=_CONFIRM_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError) as error:
            _log.warning("the server did not confirm the acknowledgements", consumer=self.name, error=describe(error))

    async def run(self) -> None:
        """Pull until cancelled or drained, or until the consumer was deleted and made again under the same name.

        In that last case stream sequences may begin at 1 again, so nothing that is known about the old ones is valid.
        Cancelling it is safe: what was delivered and not settled is redelivered.
        """
        watching = asyncio.create_task(self._watch())
        try:
            await self._keep_pulling()
        finally:
            watching.cancel()

    async def _keep_pulling(self) -> None:
        while not self._draining.is_set() and not self._replaced:
            try:
                await self._start()
                await self._pull()
                await self._pause(_RESTART_S)
            except RelayError as error:
                self._complain(error)
                await self._pause(_RETRY_S)
            finally:
                self._inbox = b""
                self._window.share.nothing_on_request()  # other lanes must not wait for what this one had asked for
                await self._close_inbox()

    def drain(self) -> None:
        """Ask for nothing more; `run` returns when the deliveries on their way have arrived."""
        self._draining.set()
        self._wake.set()

    async def _start(self) -> None:
        state = await self.state()
        if self._replaced:
            return
        self._window.start(state.delivered_count)
        self._signal = Signal.ASK_AGAIN
        inbox = self._client.new_inbox()
        self._subscription = await self._client.listen_in_batches(inbox, self._take)
        self._on_start(state)
        self._trouble = None
        self._inbox = inbox.encode()

    async def _watch(self) -> None:
        """Notice, until cancelled, that nothing is given of what waits."""
        while True:
            await asyncio.sleep(self._stalled_after_s / 2)
            asking = self._client.is_connected and self._room() > 0 and not self._draining.is_set()
            request = api_consumer_info(self._stream, self.name)
            try:
                info = await api_request(self._client, request, timeout_s=_STATE_TIMEOUT_S)
            except RelayError as error:
                _log.debug("a consumer cannot be looked at", consumer=self.name, error=str(error))
                continue  # the pull loop reports it
            state = consumer_state_of(info)
            now_s = asyncio.get_running_loop().time()
            still_s = self._stall_watch.look(
                now_s, delivered=state.delivered_count, waiting=state.waiting, asking=asking
            )
            self._tell_stall(info, state.waiting, still_s)

    def _tell_stall(self, info: Mapping[str, Any], waiting: int, still_s: float | None) -> None:
        if still_s is None:
            if self._stall is not None:
                _log.info("a lane is given updates again", consumer=self.name)
            self._stall = None
            return
        stall = f"updates wait ({waiting}), are asked for, and none was given for {still_s:.0f} s: {self._why(info)}"
        if self._stall is None:
            _log.error("a lane is given nothing", consumer=self.name, problem=stall)
        self._stall = stall

    def _why(self, info: Mapping[str, Any]) -> str:
        if WAITS_KEY in info["config"].get("metadata", {}):
            return "it waits for an older lane, since the lanes were raised; `relay provision` lets it go on in time"
        if info.get("paused"):
            until = info["config"].get("pause_until", "an unknown time")
            return f"its consumer is paused until {until}; `nats consumer resume {self._stream} {self.name}` ends that"
        if self._last_status:
            return f"nats-server's last answer was {self._last_status!r}; docs/streams.md has the limits of consumers"
        return "nats-server does not say why; look at its log, and at `nats consumer info`"

    async def _pull(self) -> None:
        """Keep pull requests under way until they have to be made again from a fresh inbox."""
        self._ask()
        while self._signal is Signal.ASK_AGAIN and not self._draining.is_set() and not self._replaced:
            self._wake.clear()
            if not await self._woken():
                _log.warning("no heartbeat for the pulls of a lane: starting over", consumer=self.name)
                return
            if self._failure is not None:
                raise self._failure
        if self._signal is Signal.CONSUMER_GONE:
            raise JetStreamError(self.name, _NOT_FOUND, CONSUMER_NOT_FOUND, "consumer deleted")

    async def _woken(self) -> bool:
        """Wait for an end of pulling; False if requests are under way and no server serves them."""
        window, loop = self._window, asyncio.get_running_loop()
        while True:
            heard_s = self._heard_s if window.outstanding else loop.time()
            try:
                async with asyncio.timeout_at(heard_s + window.dead_after_s):
                    return await self._wake.wait()
            except TimeoutError:
                if window.outstanding and loop.time() >= self._heard_s + window.dead_after_s:
                    return False

    def _ask(self) -> None:
        """Request what there is room for, unless enough is on request."""
        if not self._inbox or self._signal is not Signal.ASK_AGAIN or self._draining.is_set():
            return
        window = self._window
        window.share.memory.arriving_bytes_per_s = self._client.arriving_bytes_per_s
        wanted = window.wanted(self._room()) if self._client.is_connected else None
        if wanted is None:
            self.starved = window.is_low
            return
        self.starved = False
        if not window.outstanding:
            self._heard_s = asyncio.get_running_loop().time()
        window.requested(wanted)
        request = {
            "batch": wanted.count,
            "expires": int(window.expires_s * _NS_PER_S),
            "idle_heartbeat": int(window.idle_heartbeat_s * _NS_PER_S),
        }
        if wanted.max_bytes is not None:
            request["max_bytes"] = wanted.max_bytes
        self._client.write(publication(self._requests_on, msgspec.json.encode(request), self._inbox))

    def _take(self, messages: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
        """Take what was read together: deliveries, and statuses, which have no subject to reply to."""
        self._heard_s = asyncio.get_running_loop().time()
        window = self._window
        deliveries: list[Delivery] = []
        for subject, reply, headers, body in messages:
            if not reply:
                self._take_status(parse_headers(headers))
                continue
            try:
                deliveries.append(Delivery(self._client, subject, reply, headers, body))
            except ValueError:
                _log.warning("a message that is no delivery came to the inbox of a lane's pulls", consumer=self.name)
        if deliveries:
            if deliveries[0].consumer_sequence <= window.delivered_up_to:
                self._end_pulling(Signal.START_OVER)  # the count went back: the new leader missed some deliveries
            window.came(deliveries[-1].consumer_sequence, sum(map(_size_of, deliveries)))
            self._last_reply = deliveries[-1].reply
            self._last_status = ""
            if window.goes_alone:
                self._came_alone(deliveries[-1])
            try:
                self._on_deliveries(deliveries)
            except Exception as error:  # noqa: BLE001 - raised again by `_pull`, because the client would only report it
                self._failure = error
                self._wake.set()
        if window.delivered_up_to >= window.low_at:
            self._ask()

    def _came_alone(self, delivery: Delivery) -> None:
        """An update that was requested by itself has come: if more wait, the next one is likely to be as large."""
        window = self._window
        window.goes_alone = False
        window.goes_alone_again = (
            delivery.size_bytes > window.share.request_bytes and parse_ack_subject(delivery.reply).pending > 0
        )

    def _take_status(self, headers: Mapping[str, str]) -> None:
        pending = headers.get(_PENDING_HEADER)
        signal = self._window.status(
            int(headers.get(STATUS, "0")),
            headers.get(DESCRIPTION, ""),
            None if pending is None else int(pending),
            int(headers.get(_PENDING_BYTES_HEADER, "0")),
        )
        if signal is not Signal.ALIVE:
            self._last_status = f"{headers.get(STATUS, '')} {headers.get(DESCRIPTION, '')}".strip()
            _log.debug("a pull request ended", consumer=self.name, signal=signal.name, headers=headers)
            if signal is not Signal.ASK_AGAIN:
                self._end_pulling(signal)

    def _end_pulling(self, signal: Signal) -> None:
        if self._signal is Signal.ASK_AGAIN:
            self._signal = signal
        self._wake.set()

    def _complain(self, error: RelayError) -> None:
        trouble = str(error)
        if trouble != self._trouble:
            _log.error("a lane cannot be pulled; trying again", consumer=self.name, error=trouble, every_s=_RETRY_S)
        self._trouble = trouble

    async def _close_inbox(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None or self._client.is_closed:
            return
        if not self._draining.is_set() or not self._client.is_connected:
            await subscription.unsubscribe()
            return
        try:
            await subscription.drain()
        except (nats.errors.Error, TimeoutError) as error:
            # Deliveries that have not arrived by now go to the lane's next owner.
            _log.warning("the last deliveries of a lane were not waited for", consumer=self.name, error=describe(error))

    async def _pause(self, seconds: float) -> None:
        """Wait before another start, but not while draining."""
        await set_within(self._draining, seconds)
