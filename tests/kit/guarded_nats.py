"""A nats-server with the users of deploy/nats/users.conf, and connections as each of them.

The relay's account has one more user, `anybody`, with all permissions, to set up tests and to inspect.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import nats
from nats.aio.client import Client
from relay_kit import Scene

from relay.contract.settings import NatsSettings
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer

ROOT = Path(__file__).parents[2]
USERS = (ROOT / "deploy" / "nats" / "users.conf").read_text()
ROLES = ("producer", "runner", "relay", "operator", "observer")
ADMIN = "admin"
"""The user of the system account."""
ANYBODY = "anybody"


def password(role: str) -> str:
    return f"secret-of-{role}"


def passwords() -> dict[str, str]:
    """The variables that users.conf needs."""
    return {f"NATS_{role.upper()}_PASSWORD": password(role) for role in (*ROLES, ADMIN)}


def let_anybody_in(users: str) -> str:
    """users.conf with the user who has all permissions."""
    return users.replace("users: [", f'users: [\n{{user: {ANYBODY}, password: "{password(ANYBODY)}"}}', 1)


def guarded_server() -> NatsServer:
    """The server; `passwords` must be in its environment when it starts."""
    return NatsServer(extra_config=let_anybody_in(USERS))


def inbox_prefix(role: str) -> str:
    return "_INBOX_relay" if role == "relay" else "_INBOX"


def variables(role: str) -> dict[str, str]:
    """The relay's settings for a role, without their prefix."""
    return {"NATS_USER": role, "NATS_PASSWORD": password(role), "NATS_INBOX_PREFIX": inbox_prefix(role)}


def settings(server: NatsServer, role: str) -> NatsSettings:
    return NatsSettings(urls=(server.url,), user=role, password=password(role), inbox_prefix=inbox_prefix(role))


def scene_of(server: NatsServer, facilitator: FacilitatorSimulator, **settings: str) -> Scene:
    """A scene whose own connections have all permissions."""
    return Scene(server, facilitator, NATS_USER=ANYBODY, NATS_PASSWORD=password(ANYBODY), **settings)


@contextlib.asynccontextmanager
async def signed_in(server: NatsServer, role: str) -> AsyncIterator[Client]:
    """A connection as `role`, made with nats-py, not the relay's own client. It does not report permission errors."""

    async def ignore(_: Exception) -> None:
        pass

    client = await nats.connect(
        server.url, user=role, password=password(role), inbox_prefix=inbox_prefix(role), error_cb=ignore
    )
    try:
        yield client
    finally:
        await client.close()


async def until_heard(client: Client) -> None:
    """Wait until the server has processed all that `client` sent, and `client` has received what it was sent before.

    Every role may send this request. (`flush` does not suffice: its PING overtakes what waits in the client.)
    """
    await client.request("$JS.API.INFO", timeout=5)


def violations(server: NatsServer) -> list[str]:
    """What the server has refused to any user, as far as its log goes back."""
    return [line for line in server.log_tail.splitlines() if "Violation" in line]
