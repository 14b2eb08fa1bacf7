"""`relay publish`."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from nats.aio.client import Client
from pydantic import ValidationError
from pydantic_core import from_json

from relay.cli.console import complain, nats_client, run
from relay.contract.environment import load_settings
from relay.contract.errors import RelayError
from relay.contract.model import JobStatusUpdate
from relay.contract.settings import Settings
from relay.nats.connection import PubAck
from relay.producer import publish_body, publish_update

_WINDOW: Final = 256
"""How many lines of standard input may wait for a PubAck, their own or that of one before them."""
_STDIN: Final = 0
_MAX_PROBLEMS: Final = 3
_NOT_IN_A_TOKEN: Final = frozenset("*>")


def publish(
    uuid: Annotated[str | None, typer.Argument(help="The job's UUID, or - for standard input.")] = None,
    status: Annotated[str | None, typer.Argument(help="The job's new status.")] = None,
    *,
    metadata: Annotated[str | None, typer.Option(help="The update's metadata: a JSON object.")] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Publish each line of standard input, an update in JSON.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Publish standard input as it is, to try out dead letters.")
    ] = False,
) -> None:
    """Publish job status updates, each confirmed by JetStream.

    Prints where each is stored. An update that is published again within two minutes is stored once: its message id
    is made from its content. Bad lines of standard input are reported and left out (exit 1 at the end).
    """
    settings = load_settings()
    match uuid, status:
        case str(job), None if raw and not (stdin or metadata or job == "-"):
            run(_publish_raw(settings, _token(job), _read_stdin()))
        case ((None | "-"), None) if (stdin or uuid) and not (raw or metadata):
            if not run(_publish_lines(settings)):
                raise typer.Exit(1)
        case str(), str() if not (raw or stdin):
            run(_publish_one(settings, _update(uuid, status, metadata)))
        case _:
            usage = "give UUID and STATUS, or - alone to read lines from standard input, or --raw and UUID"
            raise typer.BadParameter(usage)


def _token(text: str) -> str:
    # An update for no job at all is worth trying out, one that NATS would not carry is not.
    if not text or not text.isprintable() or " " in text or not _NOT_IN_A_TOKEN.isdisjoint(text):
        raise typer.BadParameter(f"{text!r} cannot be part of a subject")
    return text


def _update(uuid: str, status: str, metadata: str | None) -> JobStatusUpdate:
    """The update in the arguments; by way of JSON, so that the same is allowed as in a line of standard input."""
    try:
        document = {"uuid": uuid, "status": status, "metadata": from_json(metadata) if metadata else None}
    except ValueError as error:
        raise typer.BadParameter(f"--metadata is not JSON: {error}") from None
    try:
        return JobStatusUpdate.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise typer.BadParameter(_what_is_wrong(error)) from None


def _what_is_wrong(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(map(str, each['loc'])) or 'the update'}: {each['msg']}" for each in problems[:_MAX_PROBLEMS]]
    more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
    return "; ".join(told + more)


def _where(ack: PubAck) -> str:
    return f"{ack.stream} sequence {ack.sequence}" + (" (duplicate: it was stored before)" if ack.duplicate else "")


async def _publish_one(settings: Settings, update: JobStatusUpdate) -> None:
    async with nats_client(settings.nats) as client:
        ack = await publish_update(client, update)
    typer.echo(f"{update.uuid} {update.status}: {_where(ack)}")


async def _publish_raw(settings: Settings, token: str, body: bytes) -> None:
    async with nats_client(settings.nats) as client:
        # Without a message id, because who tries something out twice wants it relayed twice.
        ack = await publish_body(client, token, body, message_id=None)
    typer.echo(f"{token}: {_where(ack)}")


async def _publish_lines(settings: Settings) -> bool:
    """Publish standard input line by line; returns whether all went well."""
    async with nats_client(settings.nats) as client:
        lines = _Lines(client)
        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(lines.report())
            await lines.publish(group)
        return reporting.result()


@dataclass(frozen=True, slots=True)
class _Line:
    """What became of one line: where its update is, or what was wrong."""

    number: int
    published: str = ""
    problem: str = ""


class _Lines:
    """Publishes many lines at a time, but one job's one after another, and reports on them in their order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._window: asyncio.Queue[asyncio.Task[_Line] | None] = asyncio.Queue(_WINDOW)
        self._last_of_job: dict[str, asyncio.Task[_Line]] = {}

    async def publish(self, group: asyncio.TaskGroup) -> None:
        """Read standard input to its end, and start publishing each line in `group`."""
        number = 0
        async for text in _stdin_lines():
            number += 1
            if text.strip():
                await self._window.put(self._begin(group, number, text))
        await self._window.put(None)

    async def report(self) -> bool:
        """Print what became of each line; returns whether all are published."""
        well = True
        while (task := await self._window.get()) is not None:
            line = await task
            if line.problem:
                well = False
                complain(f"line {line.number}: {line.problem}")
            else:
                typer.echo(line.published)
        return well

    def _begin(self, group: asyncio.TaskGroup, number: int, text: bytes) -> asyncio.Task[_Line]:
        try:
            update = JobStatusUpdate.model_validate_json(text)
        except ValidationError as error:
            return group.create_task(_refused(_Line(number, problem=_what_is_wrong(error))))
        before = self._last_of_job.get(update.uuid)
        task = group.create_task(self._publish_after(before, number, update))
        self._last_of_job[update.uuid] = task
        task.add_done_callback(lambda done: self._forget(update.uuid, done))
        return task

    async def _publish_after(self, before: "asyncio.Task[_Line] | None", number: int, update: JobStatusUpdate) -> _Line:
        if before is not None and (earlier := await before).problem:
            why = f"not published, because line {earlier.number} of the same job was not, and must come first"
            return _Line(number, problem=why)
        try:
            ack = await publish_update(self._client, update)
        except RelayError as error:
            return _Line(number, problem=str(error))
        return _Line(number, published=f"{update.uuid} {update.status}: {_where(ack)}")

    def _forget(self, uuid: str, done: asyncio.Task[_Line]) -> None:
        if self._last_of_job.get(uuid) is done and not done.result().problem:
            del self._last_of_job[uuid]


async def _refused(line: _Line) -> _Line:
    return line


def _read_stdin() -> bytes:
    try:
        with open(_STDIN, "rb", closefd=False) as stdin:
            return stdin.read()
    except OSError as error:
        raise _unreadable(error) from error


async def _stdin_lines() -> AsyncIterator[bytes]:
    """The lines of standard input as they come.

    Read in a thread, because a read from a terminal cannot be cancelled, and a file cannot be waited for. A thread of
    its own and not one of the loop's, because those are waited for at the end: Ctrl-C would have to wait for input.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | OSError] = asyncio.Queue(_WINDOW)

    def pass_on(item: bytes | OSError) -> None:
        asyncio.run_coroutine_threadsafe(lines.put(item), loop).result()

    threading.Thread(target=_read_lines, args=(pass_on,), daemon=True).start()
    while item := await lines.get():
        if isinstance(item, OSError):
            raise _unreadable(item)
        yield item


def _read_lines(pass_on: Callable[[bytes | OSError], None]) -> None:
    try:
        with open(_STDIN, "rb", closefd=False) as stdin:
            for line in stdin:
                pass_on(line)
    except OSError as error:
        pass_on(error)
    else:
        pass_on(b"")


def _unreadable(error: OSError) -> typer.BadParameter:
    return typer.BadParameter(f"standard input cannot be read: {error.strerror}")
