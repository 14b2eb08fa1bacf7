"""`relay query`."""

import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Annotated

import typer

from relay.cli.common import complain, nats_client, read_settings, run
from relay.cli.query_display import as_json, details, row
from relay.client.follower import JobFollower, follow
from relay.client.questions import ask_latest, ask_updates
from relay.contract.settings import NatsSettings
from relay.contract.subjects import is_job_uuid
from relay.query.replies import UpdateReply


def query(
    uuid: Annotated[str, typer.Argument(metavar="UUID", help="The job's UUID.")],
    *,
    history: Annotated[bool, typer.Option("--history", help="Print all its stored updates, oldest first.")] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Print the history, then what is new, until the job has ended and its end is relayed."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Ask the relays for a job's status, and whether the Facilitator has it.

    An update is `pending` until it is settled. Then it is `acknowledged`: the Facilitator has it; or `dead_lettered`:
    it is in the dead-letter stream. Exit code 1 if the job is not known, or if no relay can tell.
    """
    job = uuid.lower()
    if not is_job_uuid(job):
        raise typer.BadParameter(f"{uuid!a} is not a UUID with hyphens, such as 123e4567-e89b-42d3-a456-426614174000")
    settings = read_settings().nats
    if follow:
        run(_follow(settings, job, as_json if json else row))
    elif history:
        run(_print_history(settings, job, as_json if json else row))
    else:
        run(_print_latest(settings, job, as_json if json else _details_now))


async def _print_latest(settings: NatsSettings, job: str, to_text: Callable[[UpdateReply], str]) -> None:
    async with nats_client(settings) as client:
        typer.echo(to_text(await ask_latest(client, job)))


async def _print_history(settings: NatsSettings, job: str, to_text: Callable[[UpdateReply], str]) -> None:
    async with nats_client(settings) as client, contextlib.aclosing(ask_updates(client, job)) as updates:
        async for update in updates:
            typer.echo(to_text(update))


async def _follow(settings: NatsSettings, job: str, to_text: Callable[[UpdateReply], str]) -> None:
    async with nats_client(settings) as client:
        updates = follow(client, job, JobFollower(job), on_problem=lambda problem: complain(f"{problem}; still asking"))
        async with contextlib.aclosing(updates):
            async for update in updates:
                typer.echo(to_text(update))


def _details_now(update: UpdateReply) -> str:
    return details(update, dt.datetime.now(dt.UTC))
