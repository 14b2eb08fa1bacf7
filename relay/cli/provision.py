"""`relay provision`."""

from typing import Annotated

import typer

from relay.cli.common import complain, nats_client, read_settings, run
from relay.contract.errors import UnsafeChange
from relay.contract.settings import Settings
from relay.nats.frames import FrameClient
from relay.nats.jetstream import require_server
from relay.overview.reports import find_disagreements, gather_all_reports
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
    others: list[str] = []
    if check:
        plan = run(_check(settings, others))
        for line in plan.differences or ("everything is in place",):
            typer.echo(line)
        _tell_of(others)
        raise typer.Exit(0 if plan.in_place else 1)
    try:
        plan, waiting = run(_provision(settings, others, downgrade=downgrade))
    except UnsafeChange as refused:
        complain("refused, nothing was changed:")
        for refusal in refused.refusals:
            typer.echo(f"  {refusal}", err=True)
        _tell_of(others)
        raise typer.Exit(1) from None
    for line in plan.lines:
        typer.echo(line)
    for warning in plan.warnings:
        complain(warning)
    _tell_of(others)
    if waiting:
        run(_resume_lanes(settings))


def _tell_of(others: list[str]) -> None:
    for other in others:
        complain(f"{other}; if the value here is right, restart the relays with it")


async def _compare_workers(client: FrameClient, settings: Settings, others: list[str]) -> None:
    """Add to `others` in which settings the workers that run differ."""
    others += find_disagreements(settings.delivery.followed, (await gather_all_reports(client)).values())


async def _check(settings: Settings, others: list[str]) -> Plan:
    async with nats_client(settings.nats) as client:
        await require_server(client)
        await _compare_workers(client, settings, others)
        return await topology.check(client, topology_of(settings.delivery))


async def _resume_lanes(settings: Settings) -> None:
    """Wait until the lanes that were raised need not wait any more; can be ended at any time, and started again."""
    async with nats_client(settings.nats) as client:
        await topology.resume_all_lanes(
            client, lambda waiting: typer.echo(f"waiting, and may be run again later: {waiting}")
        )


async def _provision(settings: Settings, others: list[str], *, downgrade: bool) -> tuple[Plan, list[str]]:
    async with nats_client(settings.nats) as client:
        await require_server(client)
        await _compare_workers(client, settings, others)
        plan = await topology.provision(client, topology_of(settings.delivery), downgrade=downgrade)
        return plan, await topology.resume_lanes(client)
