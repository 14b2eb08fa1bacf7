"""Servers whose streams a client reaches through another domain or account."""

import contextlib
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nats
import nats.errors
from nats.aio.client import Client
from polling import until
from tcp_server import reserved_port

from relay.local.server import NatsServer

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
LONGER_ACKS = "feature_flags { js_ack_fc_v2: true }\n"
_USERS = "users: [{user: relay, password: secret}]"


class Elsewhere(NamedTuple):
    """The server to connect to, and the settings of the relay without their prefix."""

    server: NatsServer
    settings: dict[str, str]


def _variables(**settings: str) -> dict[str, str]:
    return {"NATS_USER": "relay", "NATS_PASSWORD": "secret", **settings}


def accounts_of_the_page() -> str:
    """The accounts that docs/configuration.md shows, with a user each."""
    (block,) = re.findall(r"```\n(accounts \{.*?)```", PAGE, re.DOTALL)
    return block.replace("# users", _USERS.replace("relay", "owner"), 1).replace("# users", _USERS, 1)


@contextlib.asynccontextmanager
async def leaf_node(*, longer_acks: bool = False) -> AsyncIterator[Elsewhere]:
    """A leaf node with a JetStream domain of its own; the streams are in the domain `hub`."""
    with reserved_port() as port:
        async with _leaf_node(port, longer_acks=longer_acks) as elsewhere:
            yield elsewhere


@contextlib.asynccontextmanager
async def _leaf_node(port: int, *, longer_acks: bool) -> AsyncIterator[Elsewhere]:
    flags = LONGER_ACKS if longer_acks else ""
    account = f"accounts {{ JOBS {{ jetstream: enabled, {_USERS} }} }}\n"
    hub = (
        'server_name: hub\njetstream: {store_dir: "store", domain: hub}\n'
        f'leafnodes {{ host: "127.0.0.1", port: {port} }}\n{account}{flags}'
    )
    remote = f'{{url: "nats-leaf://relay:secret@127.0.0.1:{port}", account: JOBS}}'
    leaf = (
        'server_name: leaf\njetstream: {store_dir: "store", domain: leaf}\n'
        f"leafnodes {{ remotes: [{remote}], reconnect: 1s }}\n{account}"
    )
    async with (
        NatsServer(jetstream=False, extra_config=hub),
        NatsServer(jetstream=False, extra_config=leaf) as server,
    ):
        await _linked(server)
        yield Elsewhere(server, _variables(NATS_DOMAIN="hub"))


async def _linked(leaf: NatsServer) -> None:
    """Wait until the leaf node has its connection to the hub, about which it tells nobody."""
    client = await nats.connect(leaf.url, user="relay", password="secret")
    try:
        await until(partial(_answers, client, "$JS.hub.API.INFO"))
    finally:
        await client.close()


async def _answers(client: Client, subject: str) -> bool:
    with contextlib.suppress(nats.errors.NoRespondersError):
        await client.request(subject, timeout=5)
        return True
    return False


@contextlib.asynccontextmanager
async def other_account(*, longer_acks: bool = False) -> AsyncIterator[Elsewhere]:
    """A server on which the relay's account imports JetStream's API of another one."""
    config = accounts_of_the_page() + (LONGER_ACKS if longer_acks else "")
    async with NatsServer(extra_config=config) as server:
        yield Elsewhere(server, _variables(NATS_API_PREFIX="JS.streams.API"))
