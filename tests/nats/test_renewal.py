"""Certificates, keys, authorities and credentials that are renewed on disk while a relay or a producer runs."""

import asyncio
import subprocess
from pathlib import Path

import nkeys
import pytest
from authority import Authority
from relay_kit import ACKED, Scene, new_job

from relay.contract.errors import BrokerUnavailable, ConfigurationError
from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.settings import DeliverySettings, NatsSettings
from relay.contract.subjects import STATUS_STREAM
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.producer import StatusPublisher
from relay.topology.provision import provision, topology_of


class Pki:
    """The files of a server and its clients, which show each other certificates of one authority."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca, self.cert, self.key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self._server_files = [folder / name for name in ("server.ca", "server.cert", "server.key")]
        self.old = Authority(folder, "old")
        self.new = Authority(folder, "new")
        self.renew_server(self.old)
        self.renew_clients(self.old)

    @property
    def config(self) -> str:
        ca, cert, key = self._server_files
        return f'tls {{ca_file: "{ca}", cert_file: "{cert}", key_file: "{key}", verify: true}}'

    def renew_server(self, authority: Authority) -> None:
        ca, cert, key = self._server_files
        ca.write_bytes(authority.ca.read_bytes())
        authority.issue(cert, key)

    def renew_clients(self, authority: Authority, *, days: int = 2) -> None:
        self.ca.write_bytes(authority.ca.read_bytes())
        authority.issue(self.cert, self.key, days=days)

    def encrypt_key(self) -> None:
        command = ("openssl", "ec", "-in", self.key, "-out", self.key, "-aes128", "-passout", "pass:secret")
        subprocess.run(command, check=True, capture_output=True)

    @property
    def variables(self) -> dict[str, str]:
        return {"NATS_CA_FILE": str(self.ca), "NATS_CERT_FILE": str(self.cert), "NATS_KEY_FILE": str(self.key)}

    def settings(self, server: NatsServer) -> NatsSettings:
        return NatsSettings(urls=(server.url,), ca_file=self.ca, cert_file=self.cert, key_file=self.key)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


async def test_a_relay_uses_renewed_certificates(pki, facilitator, after):
    """When the server comes back with certificates of another authority, the relay is not ready and says why; as soon
    as its own files are renewed, it reconnects.
    """
    failed = after(FrameClient, "failed")
    async with (
        NatsServer(extra_config=pki.config) as server,
        Scene(server, facilitator, **pki.variables) as scene,
        scene.relay() as relay,
    ):
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        await server.stop()
        pki.renew_server(pki.new)
        await server.start()
        await failed(lambda: "CERTIFICATE_VERIFY_FAILED" in str(relay.worker_status.missing()))
        assert [True] == [each.startswith("the connection to NATS") for each in relay.worker_status.missing()]
        pki.renew_clients(pki.new)
        await scene.reconnected()
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))


@pytest.mark.parametrize("spoil", ["expired", "half written", "key of another certificate", "away"])
async def test_files_that_cannot_be_used_are_read_again(pki, after, spoil):
    """A reconnect waits while the files cannot be used, says why, and goes on when they can."""
    back, failed = asyncio.Event(), after(FrameClient, "failed")
    async with NatsServer(extra_config=pki.config) as server:
        client = await connect(pki.settings(server), name="test", on_reconnected=back.set)
        reasons = {"away": "No such file", "expired": "certificate expired", "half written": "PEM lib"}
        match spoil:
            case "expired":
                pki.renew_clients(pki.old, days=-1)
            case "half written":
                pki.cert.write_text("-----BEGIN CERTIFICATE-----\n")
            case "key of another certificate":
                pki.key.write_bytes((pki.cert.parent / "server.key").read_bytes())
            case _:
                pki.cert.unlink()
        await server.restart()
        await failed(lambda: reasons.get(spoil, "key values mismatch").lower() in str(client.failures).lower())
        assert not back.is_set()
        pki.renew_clients(pki.old)
        async with asyncio.timeout(10):
            await back.wait()
        assert {} == client.failures
        await close(client)


async def test_a_producer_uses_renewed_certificates(pki, after):
    """A publisher that is in use reconnects with the renewed files, and publishes what was waiting."""
    failed, job = after(FrameClient, "failed"), new_job()
    async with NatsServer(extra_config=pki.config) as server:
        client = await connect(pki.settings(server), name="test")
        await provision(client, topology_of(DeliverySettings()))
        await close(client)
        files = {"ca_file": pki.ca, "cert_file": pki.cert, "key_file": pki.key}
        async with StatusPublisher(server.url, **files) as publisher:
            await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.RECEIVED))
            await server.stop()
            pki.renew_server(pki.new)
            await server.start()
            waiting = publisher.submit(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))
            seen: list[str] = []
            await failed(lambda: bool(seen) or seen.append("once") is not None)
            pki.renew_clients(pki.new)
            assert STATUS_STREAM == (await waiting).stream


async def test_a_renewed_nkey(tmp_path):
    """When a user got a new NKey, on disk and at the server, the reconnect signs in with it, name and signature."""
    seeds = [nkeys.encode_seed(bytes([number] * 32), nkeys.PREFIX_BYTE_USER) for number in range(2)]
    users = [nkeys.from_seed(bytearray(seed)).public_key.decode() for seed in seeds]
    file, config, back = tmp_path / "relay.nk", tmp_path / "server.conf", asyncio.Event()

    def give(number: int) -> None:
        file.write_bytes(seeds[number])
        config.write_text(f"authorization: {{users: [{{nkey: {users[number]}}}]}}\n")

    give(0)
    async with NatsServer(config_file=config) as server:
        settings = NatsSettings(urls=(server.url,), nkey_file=file)
        client = await connect(settings, name="test", on_reconnected=back.set)
        give(1)
        await server.restart()
        async with asyncio.timeout(10):
            await back.wait()
        assert client.is_connected
        file.write_bytes(seeds[0])
        with pytest.raises(BrokerUnavailable, match="Authorization Violation"):
            await connect(settings, name="test")
        await close(client)


async def test_nobody_is_asked_for_the_password_of_a_key(pki):
    """An encrypted private key is a configuration error; nothing waits for somebody to type its password."""
    pki.encrypt_key()
    async with NatsServer() as server:
        with pytest.raises(ConfigurationError, match="RELAY_NATS_CERT_FILE"):
            await connect(pki.settings(server), name="test")
