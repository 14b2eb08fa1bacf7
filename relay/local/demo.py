"""`relay demo`: the relay between an embedded nats-server and the Facilitator simulator, with a summary at the end."""

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from bittensor_wallet import Keyfile, Keypair
from nats.aio.msg import Msg

from relay.contract.errors import LocalServerError
from relay.contract.facilitator_messages import authentication_request
from relay.contract.settings import DeliverySettings, FacilitatorSettings, HttpSettings, NatsSettings, Settings
from relay.contract.subjects import (
    DLQ_STREAM,
    DLQ_SUBJECTS,
    REASON_HEADER,
    SOURCE_SEQUENCE_HEADER,
    STATUS_STREAM,
)
from relay.facilitator.identity import Signer, load_signer
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import DROP_BEFORE_STORING
from relay.local.jobs import Scenario, make_scenario
from relay.local.server import NatsServer
from relay.local.tally import Result, Tally
from relay.local.traffic import TrafficSource
from relay.nats.ack_subject import all_acks, parse_ack_subject
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.messages import find_message
from relay.service.app import Relay
from relay.topology.provision import provision, topology_of

_CONNECT_TIMEOUT_S: Final = 10.0
_SETTLE_TIMEOUT_S: Final = 30.0
"""How long to wait for the last update after the last publish. The result then counts what is there."""
_TERM: Final = "+TERM"
_SETTLING: Final = frozenset({"", "+ACK", _TERM})
# Long retries are for the real Facilitator. Three quick attempts show the same within ten seconds.
DEMO_DELIVERY: Final = DeliverySettings(max_attempts=3, backoff_initial_s=0.05, backoff_max_s=0.5)


@dataclass(frozen=True, slots=True)
class Load:
    """What to relay: how many jobs, and at how many updates a second. The same seed makes the same jobs."""

    jobs: int
    rate_per_s: float
    seed: int


class Demo:
    """A running relay between nats-server and the simulated Facilitator; see `open_demo`."""

    def __init__(self, client: FrameClient, facilitator: FacilitatorSimulator, relay: Relay, nats_url: str) -> None:
        self.tally = Tally()
        self.nats_url = nats_url
        self.http_port = relay.http_port
        self._client = client
        self._facilitator = facilitator
        self._all_settled = asyncio.Event()

    async def relay_all(self, load: Load) -> Result:
        """Publish what `load` says, wait until it is settled, and compare what was published with what arrived.

        Raises an ExceptionGroup of PublishUnconfirmed or JetStreamError if it cannot be published.
        """
        rng = Random(load.seed)
        scenario = make_scenario(rng, load.jobs)
        self._prepare(scenario)
        for subject in all_acks(STATUS_STREAM):
            await self._client.subscribe(subject, cb=self._note_acknowledgement)
        await self._client.flush()
        source = TrafficSource(self._client, scenario.jobs, rate_per_s=load.rate_per_s, rng=rng)
        await source.run(self.tally.note_published)
        await self._until_settled()
        return self.tally.result(await _dead_letters(self._client))

    def _prepare(self, scenario: Scenario) -> None:
        self._facilitator.on_row = self.tally.note_row
        self._facilitator.unknown_jobs.update(scenario.unknown_jobs)
        for uuid, status in scenario.droppers:
            self._facilitator.inject(DROP_BEFORE_STORING, uuid=uuid, status=status, times=None)

    async def _note_acknowledgement(self, message: Msg) -> None:
        """Called with each acknowledgement that the relay sends to JetStream: the demo subscribes to them."""
        verb, _, reason = message.data.decode().partition(" ")
        if verb in _SETTLING:
            sequence = parse_ack_subject(message.subject.encode()).sequence
            self.tally.note_settled(sequence, reason if verb == _TERM else None)
            if not self.tally.in_flight:
                self._all_settled.set()

    async def _until_settled(self) -> None:
        self._all_settled.clear()
        with contextlib.suppress(TimeoutError):  # the result counts what is missing, which says more than an exception
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                while self.tally.in_flight:
                    await self._all_settled.wait()
                    self._all_settled.clear()


def make_hotkey(folder: Path) -> Signer:
    """A new sr25519 hotkey in a wallet file in `folder`, read back as the relay reads its own."""
    path = folder / "hotkey"
    keypair = Keypair.create_from_mnemonic(Keypair.generate_mnemonic())
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints; standard output belongs to the command
        Keyfile(str(path)).set_keypair(keypair, encrypt=False)
    return load_signer(path, None)


@contextlib.asynccontextmanager
async def open_demo(signer: Signer, delivery: DeliverySettings = DEMO_DELIVERY) -> AsyncGenerator[Demo]:
    """Start a nats-server, a Facilitator simulator that knows `signer`, and a relay that signs in at the simulator.

    `delivery` are the relay's delivery settings; the environment is not read. At the end of the block all are stopped;
    the relay is drained first. Raises LocalServerError if something does not start.
    """
    async with NatsServer() as server, FacilitatorSimulator([signer.public_key_hex]) as facilitator:
        settings = Settings(
            nats=NatsSettings(urls=(server.url,)),
            facilitator=FacilitatorSettings(url=facilitator.url),
            delivery=delivery,
            http=HttpSettings(port=0),
        )
        async with _client(settings.nats) as client:
            await provision(client, topology_of(settings.delivery))
            authentication = authentication_request(signer.public_key_hex, signer.sign_public_key())
            relay = Relay(settings, authentication)
            async with _at_work(relay, facilitator):
                yield Demo(client, facilitator, relay, server.url)


@contextlib.asynccontextmanager
async def _client(settings: NatsSettings) -> AsyncGenerator[FrameClient]:
    client = await connect(settings, name="relay-demo")
    try:
        yield client
    finally:
        await close(client)


@contextlib.asynccontextmanager
async def _at_work(relay: Relay, facilitator: FacilitatorSimulator) -> AsyncGenerator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run(stop))
        try:
            await facilitator.wait_for(lambda simulator: simulator.authenticated == 1, _CONNECT_TIMEOUT_S)
            yield
        except TimeoutError as error:
            raise LocalServerError(f"the relay did not sign in at the simulator: {error}") from error
        finally:
            stop.set()


async def _dead_letters(client: FrameClient) -> dict[int, str]:
    """What is in the dead-letter stream: the sequence of each update, and the reason."""
    letters: dict[int, str] = {}
    position = 1
    while True:
        message = await find_message(client, DLQ_STREAM, {"seq": position, "next_by_subj": DLQ_SUBJECTS})
        if message is None:
            return letters
        headers = message.headers
        letters[int(headers[SOURCE_SEQUENCE_HEADER])] = headers[REASON_HEADER]
        position = message.sequence + 1
