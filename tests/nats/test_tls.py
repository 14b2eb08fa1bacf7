"""TLS to NATS with the project's own configuration files, and certificates made as in docs/kubernetes.md."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from guarded_nats import ANYBODY, ROOT, let_anybody_in, settings, variables
from relay_kit import Scene, new_job
from tcp_server import reserved_port

from relay.contract.errors import BrokerUnavailable, UnsuitableServer
from relay.contract.settings import DeliverySettings, NatsSettings
from relay.contract.subjects import STATUS_STREAM, api_stream_info
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.jetstream import api_request
from relay.topology.provision import provision, topology_of

SERVER_REMOVE = "$JS.API.SERVER.REMOVE"
CLUSTER_PASSWORD = "secret-of-cluster"
ELECTION_S = 30
"""How long three servers that have just started may take to elect a leader on a busy machine."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the page's commands: ca.crt, tls.crt and tls.key."""
    folder = tmp_path_factory.mktemp("certificates")
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    commands = re.findall(r"^\$ (openssl req (?:[^\\\n]|\\\n)*)$", page, flags=re.MULTILINE)
    subprocess.run(["sh", "-e"], input="\n".join(commands), cwd=folder, text=True, check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def environment(users_have_passwords: None, monkeypatch: pytest.MonkeyPatch, certificates: Path) -> None:  # noqa: ARG001
    files = {"CERT": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"}
    for name, file in files.items():
        monkeypatch.setenv(f"NATS_TLS_{name}_FILE", str(certificates / file))


def secured_config(folder: Path, *, verify: bool = False) -> Path:
    """nats-server.conf with its users and TLS switched on as its comments say; files are where it expects them."""
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    config = folder / "nats-server.conf"
    config.write_text(re.sub(r"^# include ", "include ", (ROOT / "nats-server.conf").read_text(), flags=re.MULTILINE))
    users = folder / "deploy" / "nats" / "users.conf"
    users.write_text(let_anybody_in(users.read_text()))
    if verify:
        tls = folder / "deploy" / "kubernetes" / "tls" / "tls.conf"
        tls.write_text(tls.read_text().replace("# verify: true", "verify: true"))
    return config


def tls_address(server: NatsServer) -> str:
    return server.url.replace("nats://", "tls://")


def tls_settings(server: NatsServer, role: str, **more: Any) -> Any:
    return settings(server, role).model_copy(update={"urls": (tls_address(server),), **more})


async def test_the_relay_works_over_tls(certificates, tmp_path):
    """With the users and TLS of nats-server.conf switched on, a relay as user `relay` relays updates over TLS."""
    async with (
        NatsServer(config_file=secured_config(tmp_path)) as server,
        FacilitatorSimulator() as facilitator,
        Scene(
            server,
            facilitator,
            **variables(ANYBODY),
            NATS_URL=tls_address(server),
            NATS_CA_FILE=str(certificates / "ca.crt"),
        ) as scene,
        scene.relay(**variables("relay")),
    ):
        await scene.publish_life(new_job())
        assert [] == await scene.broken_promises()


async def test_an_unknown_authority_is_refused(tmp_path):
    """A client that does not know the server's certificate authority does not connect."""
    async with NatsServer(config_file=secured_config(tmp_path)) as server:
        with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(tls_settings(server, "relay"), name="test")


async def test_strangers_are_refused(certificates, tmp_path):
    """With the users of nats-server.conf switched on, only these users can connect."""
    async with NatsServer(config_file=secured_config(tmp_path)) as server:
        with pytest.raises(BrokerUnavailable, match="Authorization Violation"):
            await connect(stranger(server, certificates), name="test")


def stranger(server: NatsServer, certificates: Path) -> NatsSettings:
    return NatsSettings(urls=(tls_address(server),), ca_file=certificates / "ca.crt")


async def test_clients_can_be_made_to_show_a_certificate(certificates, tmp_path):
    """With `verify` switched on a client without a certificate is refused, and one with a certificate is accepted."""
    ca, cert, key = (certificates / name for name in ("ca.crt", "tls.crt", "tls.key"))
    async with NatsServer(config_file=secured_config(tmp_path, verify=True)) as server:
        with pytest.raises(BrokerUnavailable):
            await connect(tls_settings(server, "relay", ca_file=ca), name="test")
        client = await connect(tls_settings(server, "relay", ca_file=ca, cert_file=cert, key_file=key), name="test")
        connected = client.is_connected
        await close(client)
    assert connected


@pytest.fixture
def route_ports() -> Iterator[list[int]]:
    """Three free ports, reserved until the servers take them."""
    with reserved_port() as one, reserved_port() as two, reserved_port() as three:
        yield [one, two, three]


@pytest.fixture
async def cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, route_ports: list[int]
) -> AsyncIterator[list[NatsServer]]:
    """Three servers with the files of deploy/nats and TLS, on loopback."""
    for number, port in enumerate(route_ports):
        monkeypatch.setenv(f"NATS_ROUTE_{number}", f"nats-route://cluster:{CLUSTER_PASSWORD}@127.0.0.1:{port}")
    monkeypatch.setenv("NATS_CLUSTER_PASSWORD", CLUSTER_PASSWORD)
    servers = []
    try:
        for number, port in enumerate(route_ports):
            monkeypatch.setenv("NATS_SERVER_NAME", f"nats-{number}")
            monkeypatch.setenv("NATS_STORE_DIR", str(tmp_path / f"store-{number}"))
            servers.append(NatsServer(config_file=cluster_config(tmp_path / f"conf-{number}", port)))
            await servers[-1].start()
        yield servers
    finally:
        for server in servers:
            await server.close()


def cluster_config(folder: Path, route_port: int) -> Path:
    """The files of deploy/nats in one folder, with TLS; only addresses and paths are of this machine."""
    shutil.copytree(ROOT / "deploy" / "nats", folder)
    shutil.copy(ROOT / "deploy" / "kubernetes" / "tls" / "tls.conf", folder)
    for file in folder.glob("*.conf"):
        text = file.read_text().replace("0.0.0.0:6222", f"127.0.0.1:{route_port}").replace("0.0.0.0", "127.0.0.1")
        file.write_text(text.replace("/run/nats/nats.pid", str(folder / "nats.pid")))
    return folder / "nats-server.conf"


async def test_the_cluster_of_production(cluster, certificates):
    """Three servers with the production files connect over TLS, keep three replicas, and refuse strangers."""
    client = await connect(tls_settings(cluster[0], "operator", ca_file=certificates / "ca.crt"), name="test")
    try:
        async with asyncio.timeout(ELECTION_S):
            await provision_when_there_is_a_leader(client)
        info = await api_request(client, api_stream_info(STATUS_STREAM))
        with pytest.raises(BrokerUnavailable, match="Authorization Violation"):
            await connect(stranger(cluster[0], certificates), name="test")
    finally:
        await close(client)
    members = {info["cluster"]["leader"], *(each["name"] for each in info["cluster"]["replicas"])}
    assert {"nats-0", "nats-1", "nats-2"} == members


async def test_a_server_is_removed(cluster, certificates):
    """The user `admin` removes a server that is gone for good, as `nats server cluster peer-remove` does."""
    admin = await connect(tls_settings(cluster[0], "admin", ca_file=certificates / "ca.crt"), name="test")
    operator = await connect(tls_settings(cluster[0], "operator", ca_file=certificates / "ca.crt"), name="test")
    try:
        async with asyncio.timeout(ELECTION_S):
            await provision_when_there_is_a_leader(operator)
        await cluster[2].kill()
        async with asyncio.timeout(ELECTION_S):
            removed = await removed_when_there_is_a_leader(admin, "nats-2")
        with pytest.raises(BrokerUnavailable):
            await api_request(operator, SERVER_REMOVE, {"peer": "nats-1"}, timeout_s=0.5)
    finally:
        await close(admin)
        await close(operator)
    assert removed["success"]


async def removed_when_there_is_a_leader(admin: Any, name: str) -> dict[str, Any]:
    while True:
        try:
            return await api_request(admin, SERVER_REMOVE, {"peer": name})
        except (BrokerUnavailable, UnsuitableServer):
            await asyncio.sleep(0.1)


async def provision_when_there_is_a_leader(client: Any) -> None:
    # There is no message about the first election, so the only way is to ask again.
    while True:
        try:
            await provision(client, topology_of(DeliverySettings(lanes=1, replicas=3)))
        except BrokerUnavailable:
            await asyncio.sleep(0.1)
        else:
            return
