"""`relay provision`."""

from typing import Annotated

import typer

from relay.cli.console import complain, nats_client, read_settings, run
from relay.contract.errors import UnsafeChange
from relay.contract.settings import Settings
from relay.nats.connection import require_server
from relay.topology import provision as topology
from relay.topology.plan import Plan
from relay.topology.provision import topology_of


def provision(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if anything would change.")
    ] = False,
    downgrade: Annotated[
        bool,
        typer.Option("--downgrade", help="Also reduce the number of copies, and the time to live of leases."),
    ] = False,
) -> None:
    """Create or change the streams and consumers as the settings ask.

    Prints what was created, changed, deleted or left as it was. If a change could lose or reorder updates, or would
    leave fewer copies or shorter leases, it is refused with the reasons, and nothing is changed. Options that can lose
    updates are put back, or, where the server does not let them be undone, refused or named on standard error with what
    they mean.
    """
    settings = read_settings()
    if check:
        plan = run(_check(settings))
        for line in plan.differences or ("everything is in place",):
            typer.echo(line)
        raise typer.Exit(0 if plan.in_place else 1)
    try:
        plan = run(_provision(settings, downgrade=downgrade))
    except UnsafeChange as refused:
        complain("refused, nothing was changed:")
        for refusal in refused.refusals:
            typer.echo(f"  {refusal}", err=True)
        raise typer.Exit(1) from None
    for line in plan.lines:
        typer.echo(line)
    for warning in plan.warnings:
        complain(warning)


async def _check(settings: Settings) -> Plan:
    async with nats_client(settings.nats) as client:
        await require_server(client)
        return await topology.check(client, topology_of(settings.delivery))


async def _provision(settings: Settings, *, downgrade: bool) -> Plan:
    async with nats_client(settings.nats) as client:
        await require_server(client)
        return await topology.provision(client, topology_of(settings.delivery), downgrade=downgrade)
