"""What an address of NATS says: user, password and token, and the way to the server."""

import asyncio
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from cli_kit import TIMEOUT_S, environment
from tcp_server import reserved_port

from relay.contract import contradictions
from relay.contract.environment import load_settings
from relay.contract.errors import BrokerUnavailable, ConfigurationError
from relay.local.server import NatsServer
from relay.nats.jetstream import require_server

SECRET = "p@ss:/?#[]%word +é,"
USERS = f'authorization {{ user: "{SECRET}", password: "{SECRET}" }}'
TOKEN = f'authorization {{ token: "{SECRET}" }}'


@pytest.mark.parametrize(
    ("config", "signed"),
    [(USERS, f"{quote(SECRET, safe='')}:{quote(SECRET, safe='')}"), (TOKEN, quote(SECRET, safe=""))],
    ids=["password", "token"],
)
async def test_percent_encoded(config, signed, connect):
    """User, password and token of an address are percent-decoded, at connect and at reconnect."""
    again = asyncio.Event()
    async with NatsServer(extra_config=config) as server:
        client = await connect(f"nats://{signed}@127.0.0.1:{server.port}", on_reconnected=again.set)
        await server.kill()
        await server.start()
        async with asyncio.timeout(TIMEOUT_S):
            await again.wait()
        await require_server(client)
        with pytest.raises(BrokerUnavailable, match=r"(?i)authorization violation"):
            await connect(f"nats://{signed}x@127.0.0.1:{server.port}")


async def test_no_noise_over_tls(tmp_path, certificate):
    """A command over TLS prints its result and nothing of the libraries, also if the server ends the connection."""
    cert, key = certificate
    config = f'tls {{ cert_file: "{cert}", key_file: "{key}" }}\n{TOKEN}'
    async with NatsServer(extra_config=config) as server:
        url = f"tls://127.0.0.1:{server.port}"
        told = [
            await provision(tmp_path, NATS_URL=url, NATS_CA_FILE=str(cert), NATS_TOKEN=token) for token in (SECRET, "x")
        ]
    (fine, out, err), (refused, _, why) = told
    assert (0, 9, "") == (fine, len(out.splitlines()), err)
    assert (1, 1, True) == (refused, len(why.splitlines()), "authorization violation" in why.lower())


async def provision(folder: Path, **settings: str) -> tuple[int, str, str]:
    """`relay provision` in a process of its own: its status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "provision"),
        cwd=folder,
        env=environment(**settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_websocket_without_its_library(monkeypatch, scheme):
    """Without the library for WebSocket, such an address ends the start, and says what to install."""
    monkeypatch.setattr(contradictions, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"need aiohttp: pip install 'job-status-relay\[websocket\]'"):
        load_settings({"RELAY_NATS_URL": f"{scheme}://127.0.0.1:8080"}, None)


async def test_websocket(tmp_path):
    """With the library, commands reach NATS over WebSocket."""
    with reserved_port() as port:
        config = f'websocket {{ host: "127.0.0.1", port: {port}, no_tls: true }}\n{TOKEN}'
        async with NatsServer(extra_config=config):
            url = f"ws://{quote(SECRET, safe='')}@127.0.0.1:{port}"
            status, out, err = await provision(tmp_path, NATS_URL=url)
    assert (0, 9, "") == (status, len(out.splitlines()), err), err
