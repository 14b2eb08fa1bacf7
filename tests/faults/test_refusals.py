"""NATS refuses a relay that was connected, for a while: credentials expire, are withdrawn, an account is disabled."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cli_kit import make_command
from decentralized import STORAGE, Decentralized
from polling import until
from relay_kit import ACKED, Scene, missing, new_job, running, said

from relay.contract.environment import load_settings
from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.settings import NatsSettings
from relay.doctor.nats_checks import check_server
from relay.local.server import NatsServer
from relay.nats import connection
from relay.nats.frames import FrameClient
from relay.producer import Limits, PublishTimedOut, StatusPublisher
from relay.service.app import Relay
from relay.service.intervals import Intervals

USERS = """
accounts {{
    RELAY {{ jetstream: {jetstream}, users: [{users}] }}
    OTHER {{ users: [{{user: other, password: other}}] }}
    SYS {{}}
}}
system_account: SYS
"""
ANYBODY = "{user: anybody, password: anybody}"
ANYBODYS = {"NATS_USER": "anybody", "NATS_PASSWORD": "anybody"}
FULL = "maximum connections exceeded: the server has as many connections as its max_connections allows; raise it"


def user(password: str) -> str:
    return f"{{user: relay, password: {password}}}"


async def test_credentials_expire(tmp_path, facilitator, after):
    """When the JWT of a connected relay expires, and was renewed on disk before, it reconnects with the new one."""
    failed, realm = after(FrameClient, "failed"), Decentralized()
    lasting = realm.credentials(tmp_path, "test")
    async with NatsServer(extra_config=realm.config) as server:
        creds = realm.credentials(tmp_path, "relay", lifetime_s=2)
        async with (
            Scene(server, facilitator, NATS_CREDS=str(lasting)) as scene,
            scene.relay(NATS_CREDS=str(creds)) as relay,
        ):
            realm.credentials(tmp_path, "relay")
            client = relay.worker_status.client
            await failed(lambda: "user authentication expired" in str(client.failures))
            assert [ACKED] == await scene.settled(await scene.publish(new_job()))
            assert [] == await scene.broken_promises()


@pytest.mark.parametrize(
    ("refusal", "problem"),
    [
        (lambda _: {"limits": {"conn": 0, "leaf": 0}}, "maximum account active connections exceeded"),
        (lambda _: {"lifetime_s": 3}, "Authorization Violation"),
        (lambda user: {"revocations": {user: int(time.time()) + 60}}, "Authorization Violation"),
        (lambda _: {"limits": dict.fromkeys(STORAGE, 0)}, "JetStream"),
    ],
    ids=["disabled", "expires", "user revoked", "without storage"],
)
async def test_the_operator_refuses_the_account(tmp_path, facilitator, refusal, problem):
    """If the account gets a token with which it may not connect, or not store, neither a relay that is connected nor
    one that starts is ready; both say why, and go on when the account gets a good token.
    """
    realm = Decentralized()
    creds, admin = realm.credentials(tmp_path, "relay"), realm.credentials(tmp_path, "admin", system=True)
    others = realm.credentials(tmp_path, "test")
    async with (
        NatsServer(extra_config=realm.config) as server,
        operating(server, admin) as push,
        Scene(server, facilitator, NATS_CREDS=str(others), LEASE_TTL="1") as scene,
        scene.relay(NATS_CREDS=str(creds)) as relay,
    ):
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        await push(realm.account(**refusal(realm.user("relay"))))
        await missing(relay, problem)
        settings = load_settings(scene.environment | {"RELAY_NATS_CREDS": str(creds)}, None)
        async with running(Relay(settings, None, intervals=Intervals(provision_check_s=0.1))) as (second, _):
            await missing(second, problem)
            await push(realm.account())
            for each in (relay, second):
                await said(each, lambda told: told["ready"])
            await until(lambda: scene.nc.is_connected)  # it may not have been refused
            await scene.nc.flush()
            assert [ACKED] == await scene.settled(await scene.publish(new_job()))
            assert [] == await scene.broken_promises()


@contextlib.asynccontextmanager
async def operating(server: NatsServer, admin: Path) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """`await push(token)`: give the server another token of an account, as `nsc push` does."""
    client = await connection.connect(NatsSettings(urls=(server.url,), creds=admin), name="operator")

    async def push(token: str) -> None:
        answer = await client.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=5)
        assert 200 == json.loads(answer.data).get("data", {}).get("code"), answer.data

    try:
        yield push
    finally:
        await connection.close(client)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "server.conf"


def configure(config: Path, *users: str, jetstream: str = "enabled", server: str = "") -> None:
    store = f'jetstream: {{store_dir: "{config.parent}/store"}}\n{server}\n'
    config.write_text(store + USERS.format(users=", ".join((ANYBODY, *users)), jetstream=jetstream))


def reload(server: NatsServer) -> None:
    os.kill(server.pid, signal.SIGHUP)


@pytest.mark.parametrize("users", [[user("changed")], []], ids=["password changed", "user removed"])
async def test_sign_in_is_withdrawn(config, facilitator, after, users):
    """If the server is reloaded with another password, or without the user, a relay is not ready and says why; it goes
    on when it is let in again.
    """
    failed = after(FrameClient, "failed")
    configure(config, user("right"))
    async with (
        NatsServer(config_file=config) as server,
        Scene(server, facilitator, NATS_USER="anybody", NATS_PASSWORD="anybody") as scene,
        scene.relay(NATS_USER="relay", NATS_PASSWORD="right") as relay,
    ):
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        configure(config, *users)
        reload(server)
        await failed(lambda: "Authorization Violation" in str(relay.worker_status.missing()))
        configure(config, user("right"))
        reload(server)
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        assert [] == await scene.broken_promises()


async def test_account_without_jetstream_for_a_while(config, facilitator, after):
    """If JetStream is taken from the account, the relay goes on when the account has it again."""
    configure(config, user("right"))
    async with (
        NatsServer(config_file=config) as server,
        Scene(server, facilitator, NATS_USER="anybody", NATS_PASSWORD="anybody", LEASE_TTL="1") as scene,
        scene.relay(NATS_USER="relay", NATS_PASSWORD="right") as relay,
    ):
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        until = after(type(relay._ownership), "_rebalance")
        configure(config, user("right"), jetstream="disabled")
        reload(server)
        await until(lambda: "JetStream" in str(relay.worker_status.missing()))
        configure(config, user("right"))
        reload(server)
        await until(lambda: relay.worker_status.missing() == [])
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        assert [] == await scene.broken_promises()


async def test_jetstream_is_switched_off_for_a_while(config, facilitator, after):
    """If JetStream is switched off by a reload of the server, which then gives no answer, a relay and the doctor say
    what that may be; the relay goes on when JetStream is there again.
    """
    on = f'jetstream: {{store_dir: "{config.parent}/store"}}'
    config.write_text(on)
    async with (
        NatsServer(config_file=config) as server,
        Scene(server, facilitator, LEASE_TTL="1") as scene,
        scene.relay() as relay,
    ):
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        until = after(type(relay._ownership), "_rebalance")
        config.write_text("")
        reload(server)
        await until(lambda: "or is switched off: look at its log" in str(relay.worker_status.missing()))
        finding = await check_server(scene.settings.nats, server.url, 3)
        assert ("no answer to $JS.API.INFO" in finding.found, "switched off" in finding.remedy) == (True, True)
        config.write_text(on)
        reload(server)
        await until(lambda: relay.worker_status.missing() == [])
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        assert [] == await scene.broken_promises()


async def test_no_room_for_connections(config, facilitator, monkeypatch, tmp_path):
    """If a reload of the server leaves no room for connections, a relay that was connected, one that starts, commands
    and a producer name the limit, and what to do; the relays go on when there is room.
    """
    command = make_command(monkeypatch, tmp_path)
    configure(config)
    async with (
        NatsServer(config_file=config) as server,
        Scene(server, facilitator, **ANYBODYS) as scene,
        scene.relay() as relay,
    ):
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        configure(config, server="max_connections: -1")
        reload(server)
        await missing(relay, FULL)
        async with running(Relay(scene.settings, None)) as (second, _):
            await missing(second, FULL)
            for arguments in (("provision",), ("doctor",)):
                ended = await command(*arguments, NATS_URL=server.url, FACILITATOR_AUTH="none", **ANYBODYS)
                told = " ".join((ended.out + ended.err).split()).replace(" -> ", "; ")
                assert (1, True) == (ended.code, FULL in told), told
            sign_in = {"user": "anybody", "password": "anybody"}
            async with StatusPublisher(server.url, limits=Limits(timeout_s=0.5), **sign_in) as publisher:
                with pytest.raises(PublishTimedOut, match=FULL):
                    await publisher.publish(JobStatusUpdate(uuid=new_job(), status=JobStatus.ACCEPTED))
            configure(config)
            reload(server)
            await scene.reconnected()
            assert [ACKED] == await scene.settled(await scene.publish(new_job()))
            assert [] == await scene.broken_promises()


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"jetstream": "disabled"}, "JetStream is not enabled on the nats-server"),
        ({"server": "max_payload: 20000"}, "nats-server has max_payload 20000; the relay needs more than"),
        ({"jetstream": "{max_streams: 2}"}, "maximum number of streams reached"),
    ],
    ids=["no JetStream", "max_payload", "few streams"],
)
async def test_what_is_waited_out_at_the_start(config, facilitator, limits, problem):
    """A relay that meets a server or an account that it cannot use is not ready, says why, and goes on by itself when
    that is mended.
    """
    configure(config, **limits)
    async with NatsServer(config_file=config) as server:
        scene = Scene(server, facilitator, NATS_USER="anybody", NATS_PASSWORD="anybody")
        relay = Relay(scene.settings, None, provision_first=True, intervals=Intervals(provision_check_s=0.1))
        async with running(relay) as (_, ended):
            told = await said(relay, lambda told: problem in str(told["missing"]) or ended.done())
            assert (False, False) == (ended.done(), told["ready"])
            configure(config)
            reload(server)
            async with asyncio.timeout(10):
                await relay.ready.wait()
            async with scene:
                assert [ACKED] == await scene.settled(await scene.publish(new_job()))
