"""`relay publish`."""

import json
from typing import Annotated, Final

import typer
from pydantic import ValidationError
from pydantic_core import from_json

from relay.cli.common import nats_client, read_settings, run
from relay.cli.publish_lines import problems_of, publish_lines, stored_at
from relay.cli.stdin import read_stdin
from relay.contract.model import JobStatusUpdate
from relay.contract.settings import Settings
from relay.producer import publish_body, publish_update

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
    """Publish job status updates, and wait until JetStream confirms each.

    Prints where each update is stored. An update that is published again within two minutes is stored once, because
    its message id is made from its content. Lines of standard input that are not valid are reported and left out;
    the exit code is then 1.
    """
    settings = read_settings()
    match uuid, status:
        case str(job), None if raw and not (stdin or metadata or job == "-"):
            run(_publish_raw(settings, _token(job), read_stdin()))
        case ((None | "-"), None) if (stdin or uuid) and not (raw or metadata):
            if not run(_publish_lines(settings)):
                raise typer.Exit(1)
        case str(), str() if not (raw or stdin):
            run(_publish_one(settings, _update(uuid, status, metadata)))
        case _:
            usage = "give UUID and STATUS, or - alone to read lines from standard input, or --raw and UUID"
            raise typer.BadParameter(usage)


def _token(text: str) -> str:
    """`text` as the last token of a subject. It need not be a UUID, so that dead letters can be tried out."""
    if not text or not text.isprintable() or " " in text or not _NOT_IN_A_TOKEN.isdisjoint(text):
        raise typer.BadParameter(f"{text!r} cannot be part of a subject")
    return text


def _update(uuid: str, status: str, metadata: str | None) -> JobStatusUpdate:
    """The update in the arguments. It is validated as JSON, so that the same is allowed as on standard input."""
    try:
        document = {
            "uuid": uuid,
            "status": status,
            "metadata": from_json(metadata, allow_inf_nan=False) if metadata else None,
        }
    except (ValueError, TypeError) as error:  # the latter for text that is not UTF-8
        raise typer.BadParameter(f"--metadata is not JSON: {error}") from None
    try:
        return JobStatusUpdate.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise typer.BadParameter(problems_of(error)) from None


async def _publish_one(settings: Settings, update: JobStatusUpdate) -> None:
    async with nats_client(settings.nats) as client:
        ack = await publish_update(client, update)
    typer.echo(f"{update.uuid} {update.status}: {stored_at(ack)}")


async def _publish_raw(settings: Settings, token: str, body: bytes) -> None:
    async with nats_client(settings.nats) as client:
        # Without a message id, so that the same bytes can be published and relayed twice.
        ack = await publish_body(client, token, body, message_id=None)
    typer.echo(f"{token}: {stored_at(ack)}")


async def _publish_lines(settings: Settings) -> bool:
    async with nats_client(settings.nats) as client:
        return await publish_lines(client)
