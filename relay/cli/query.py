"""`relay query`."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Final, TypeVar

import msgspec
import nats.errors
import typer
from nats.aio.client import Client
from nats.aio.msg import Msg

from relay.cli.console import complain, nats_client, run
from relay.contract.environment import load_settings
from relay.contract.settings import NatsSettings
from relay.contract.subjects import (
    STATUS_STREAM,
    history_subject,
    is_job_uuid,
    query_subject,
    receipt_subject,
    status_subject,
)
from relay.contract.text import describe, escape, format_duration
from relay.nats.nats_py import stay_cancelled
from relay.query.replies import HistoryReply, HistoryRequest, Progress, UpdateReply

_ANSWER_TIMEOUT_S: Final = 6.0
"""Longer than any worker takes, which says so itself."""
_ASK_AGAIN_S: Final = 2.0
_CODE_HEADER: Final = "Nats-Service-Error-Code"
_ERROR_HEADER: Final = "Nats-Service-Error"
_NOT_FOUND: Final = 404
_MEANINGS: Final = {
    Progress.PENDING: "it is not settled yet",
    Progress.ACKNOWLEDGED: "the Facilitator has it",
    Progress.DEAD_LETTERED: "`relay dlq show {letter}` says why",
}

R = TypeVar("R", UpdateReply, HistoryReply)


class _Refused(Exception):  # noqa: N818 - an answer, too
    """The question got no answer; `code` is as of HTTP."""

    def __init__(self, code: int, why: str) -> None:
        self.code = code
        super().__init__(why)


def query(
    uuid: Annotated[str, typer.Argument(metavar="UUID", help="The job.")],
    *,
    history: Annotated[bool, typer.Option("--history", help="All its updates that are stored, oldest first.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="The same, and what comes, until the job has ended and that is relayed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Ask the relays for a job's status, and how far it got on its way to the Facilitator.

    `pending` is not settled yet; `acknowledged` means that the Facilitator has it; `dead_lettered` that it is in the
    dead-letter stream. Exit 1 if the job is not known or nobody can tell.
    """
    job = uuid.lower()
    if not is_job_uuid(job):
        raise typer.BadParameter(f"{uuid!a} is not a UUID with hyphens, such as 123e4567-e89b-42d3-a456-426614174000")
    settings = load_settings().nats
    asked = _follow(settings, job, as_json=as_json) if follow else _ask_once(settings, job, history, as_json)
    try:
        run(asked)
    except _Refused as refused:
        complain(escape(str(refused)))
        raise typer.Exit(1) from None


async def _ask_once(settings: NatsSettings, job: str, history: bool, as_json: bool) -> None:  # noqa: FBT001
    async with nats_client(settings) as client:
        if history:
            async with contextlib.aclosing(_updates(client, job)) as updates:
                async for update in updates:
                    typer.echo(_as_json(update) if as_json else _row(update))
            return
        latest = await _ask(client, query_subject(job), b"", UpdateReply)
        typer.echo(_as_json(latest) if as_json else _details(latest, dt.datetime.now(dt.UTC)))


async def _follow(settings: NatsSettings, job: str, *, as_json: bool) -> None:
    news = asyncio.Event()

    async def hear(_: Msg) -> None:
        news.set()

    async with nats_client(settings) as client:
        for subject in (status_subject(job), receipt_subject(job)):
            await client.subscribe(subject, cb=hear)  # pyright: ignore[reportUnknownMemberType] - a bare Future
        following = _Following(as_json=as_json)
        while not await following.look(client, job):
            # Updates and receipts are heard as they are published. Receipts may be switched off, and nobody keeps
            # either for who is disconnected for a moment: so the question is asked again in any case.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ASK_AGAIN_S):
                    await news.wait()
            news.clear()


class _Following:
    """What of a job was shown already."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._settled_up_to = 0
        self._pending: set[int] = set()
        self._trouble = ""

    async def look(self, client: Client, job: str) -> bool:
        """Show what is new; returns whether the job has ended, and its last update is settled."""
        ended, all_settled = False, True
        try:
            async with contextlib.aclosing(_updates(client, job, self._settled_up_to)) as updates:
                async for update in updates:
                    self._show(update)
                    pending = update.progress is Progress.PENDING
                    all_settled = all_settled and not pending
                    if all_settled:
                        self._settled_up_to = update.sequence
                    ended = update.terminal and not pending
        except _Refused as refused:
            self._complain(str(refused))
            return False
        self._trouble = ""
        return ended

    def _show(self, update: UpdateReply) -> None:
        if update.progress is Progress.PENDING:
            if update.sequence in self._pending:
                return
            self._pending.add(update.sequence)
        else:
            self._pending.discard(update.sequence)
        typer.echo(_as_json(update) if self._as_json else _row(update))

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            complain(escape(f"{trouble}; still asking"))
        self._trouble = trouble


async def _updates(client: Client, job: str, after: int = 0) -> AsyncGenerator[UpdateReply]:
    """The job's updates behind a sequence, page by page. Raises _Refused."""
    following: int | None = after
    while following is not None:
        request = msgspec.json.encode(HistoryRequest(after=following))
        page = await _ask(client, history_subject(job), request, HistoryReply)
        for update in page.updates:
            yield msgspec.json.decode(update, type=UpdateReply)
        following = page.next


async def _ask(client: Client, subject: str, request: bytes, kind: type[R]) -> R:
    try:
        answer = await client.request(subject, request, timeout=_ANSWER_TIMEOUT_S)
        stay_cancelled()
    except nats.errors.NoRespondersError:
        raise _Refused(503, f"nobody answers on {subject}: no relay is running on this NATS") from None
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise _Refused(503, f"no answer on {subject}: {describe(error)}") from None
    headers: dict[str, Any] = answer.headers or {}
    if _CODE_HEADER in headers:
        raise _Refused(int(headers[_CODE_HEADER]), headers.get(_ERROR_HEADER, "no reason is given"))
    try:
        return msgspec.json.decode(answer.data, type=kind)
    except msgspec.DecodeError as error:
        raise _Refused(502, f"the answer on {subject} cannot be read: {error}") from None


def _as_json(update: UpdateReply) -> str:
    return msgspec.json.encode(update).decode()


def _row(update: UpdateReply) -> str:
    status = update.status or "unreadable"
    return escape(f"{update.sequence:>8}  {_moment(update.published)}  {status:15}  {_progress(update)}")


def _progress(update: UpdateReply) -> str:
    if update.progress is not Progress.DEAD_LETTERED:
        return update.progress
    return f"{update.progress} ({update.reason}, dead letter {update.dead_letter})"


def _details(update: UpdateReply, now: dt.datetime) -> str:
    status = update.status or f"unreadable ({update.unreadable})"
    age_s = max(0.0, (now - dt.datetime.fromisoformat(update.published)).total_seconds())
    published = f"{_moment(update.published)} UTC ({format_duration(age_s)} ago)"
    meaning = _MEANINGS[update.progress].format(letter=update.dead_letter)
    lines = (
        f"job        {update.uuid}",
        f"status     {status}{', with which the job ends' if update.terminal else ''}",
        f"published  {published}, {STATUS_STREAM} sequence {update.sequence}",
        f"relayed    {_progress(update)}: {meaning}",
    )
    return "\n".join(map(escape, lines))


def _moment(published: str) -> str:
    """A time of the server, to the millisecond."""
    return dt.datetime.fromisoformat(published).astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
