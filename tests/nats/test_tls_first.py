"""Servers with `handshake_first: true`, which expect TLS before they say anything."""

import pytest
from cli_kit import make_command
from relay_kit import ACKED, Scene, new_job

from relay.client import StatusClient, UpdateProgress
from relay.contract.errors import BrokerUnavailable
from relay.contract.settings import NatsSettings
from relay.local.server import NatsServer
from relay.nats.connection import connect
from relay.producer import JobStatus, JobStatusUpdate, StatusPublisher


def tls(certificate, *, first: bool) -> NatsServer:
    cert, key = certificate
    return NatsServer(
        extra_config=f'tls {{cert_file: "{cert}", key_file: "{key}", handshake_first: {str(first).lower()}}}'
    )


async def test_everything_over_tls_first(certificate, facilitator, monkeypatch, tmp_path):
    """With the setting, relay, commands, producer and client reach such a server, also after its restart."""
    settings = {"NATS_TLS_FIRST": "true", "NATS_CA_FILE": str(certificate[0])}
    command = make_command(monkeypatch, tmp_path)
    async with tls(certificate, first=True) as server:
        assert 0 == (await command("provision", NATS_URL=server.url, **settings)).code
        async with Scene(server, facilitator, **settings) as scene, scene.relay() as relay:
            await relay.serving.wait()
            environ = {f"RELAY_{name}": value for name, value in settings.items()} | {"RELAY_NATS_URL": server.url}
            job = new_job()
            async with StatusPublisher.from_environment(environ) as publisher:
                await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))
            async with StatusClient.from_environment(environ) as client:
                update = await client.wait_until(job, relayed=JobStatus.ACCEPTED, timeout_s=10)
            await server.restart()
            await scene.reconnected()
            assert [ACKED] == await scene.settled(await scene.publish(new_job()))
    assert UpdateProgress.ACKNOWLEDGED is update.progress


async def test_without_the_setting(certificate):
    """Without it, the error names it."""
    async with tls(certificate, first=True) as server:
        with pytest.raises(BrokerUnavailable, match="then set RELAY_NATS_TLS_FIRST=true"):
            await connect(NatsSettings(urls=(server.url,), ca_file=certificate[0]), name="test")


@pytest.mark.parametrize("encrypted", [True, False])
async def test_the_setting_with_another_server(certificate, nats_server, encrypted):
    """With it, a server that speaks first gets nothing but the begin of TLS, and the error names the setting."""
    async with tls(certificate, first=False) as other:
        server = other if encrypted else nats_server
        with pytest.raises(BrokerUnavailable, match="then unset RELAY_NATS_TLS_FIRST"):
            await connect(NatsSettings(urls=(server.url,), tls_first=True, ca_file=certificate[0]), name="test")
