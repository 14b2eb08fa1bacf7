"""`relay query`."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Annotated

import typer
from nats.aio.msg import Msg

from relay.cli.console import complain, nats_client, read_settings, run
from relay.cli.query_client import QueryFailed, ask_latest, ask_updates
from relay.cli.query_display import as_json, details, row
from relay.contract.settings import NatsSettings
from relay.contract.subjects import is_job_uuid, receipt_subject, status_subject
from relay.nats.frames import FrameClient
from relay.query.replies import UpdateProgress, UpdateReply
from relay.timing.waiting import set_within


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
        await follow_job(client, job, lambda update: typer.echo(to_text(update)))


def _details_now(update: UpdateReply) -> str:
    return details(update, dt.datetime.now(dt.UTC))


async def follow_job(
    client: FrameClient, job: str, show: Callable[[UpdateReply], None], *, ask_again_s: float = 2.0
) -> None:
    """Call `show` for each update when it is stored and again when it is settled, until the job's end is settled.

    Cancelling it is safe.
    """
    news = asyncio.Event()

    async def wake(_: Msg) -> None:
        news.set()

    for subject in (status_subject(job), receipt_subject(job)):
        await client.subscribe(subject, cb=wake)
    follower = _Follower(client, job, show)
    while not await follower.ask():
        # Ask again even without a message: receipts may be off, and messages during a reconnect are missed.
        await set_within(news, ask_again_s)
        news.clear()


class _Follower:
    """Shows each update of a job once while it is pending and once when it is settled."""

    def __init__(self, client: FrameClient, job: str, show: Callable[[UpdateReply], None]) -> None:
        self._client = client
        self._job = job
        self._show = show
        self._settled_up_to = 0
        self._pending: set[int] = set()
        """Shown as pending, and not settled since."""
        self._problem = ""

    async def ask(self) -> bool:
        """Ask once and show what is new. True if the job has ended and its last update is settled."""
        ended, all_settled = False, True
        try:
            async with contextlib.aclosing(ask_updates(self._client, self._job, self._settled_up_to)) as updates:
                async for update in updates:
                    self._show_if_new(update)
                    settled = update.progress is not UpdateProgress.PENDING
                    all_settled = all_settled and settled
                    if all_settled:
                        self._settled_up_to = update.sequence
                    ended = update.terminal and settled
        except QueryFailed as error:
            self._complain_once(error.problem)
            return False
        self._problem = ""
        return ended

    def _show_if_new(self, update: UpdateReply) -> None:
        if update.progress is not UpdateProgress.PENDING:
            self._pending.discard(update.sequence)
        elif update.sequence in self._pending:
            return
        else:
            self._pending.add(update.sequence)
        self._show(update)

    def _complain_once(self, problem: str) -> None:
        if problem != self._problem:
            complain(f"{problem}; still asking")
        self._problem = problem
