"""What the commands have in common: how they complain, and how they reach NATS."""

import contextlib
from collections.abc import AsyncGenerator

import typer
from nats.aio.client import Client

from relay import logs
from relay.broker.connection import close, connect
from relay.settings import NatsSettings


def complain(problem: str) -> None:
    """One line on standard error."""
    typer.echo(f"relay: {problem}", err=True)


@contextlib.asynccontextmanager
async def nats_client(settings: NatsSettings) -> AsyncGenerator[Client]:
    """A connection for one command. Raises BrokerUnavailable and ConfigurationError as `connect` does."""
    logs.configure("warning", "console")  # a command answers on standard output; its log is for trouble alone
    client = await connect(settings, name="relay-cli")
    try:
        yield client
    finally:
        await close(client)
