"""`relay publish`: from arguments, from standard input, and as raw bytes."""

import asyncio
import concurrent.futures
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cli_kit import TIMEOUT_S, Ended, start_command

from relay.cli import stdin
from relay.contract.model import JobStatusUpdate
from relay.producer import message_id

A, B = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"


def document(uuid: str = A, status: str = "received", **more: Any) -> str:
    return json.dumps({"uuid": uuid, "status": status, **more})


@pytest.fixture
def publish(relay, nats_server) -> Callable[..., Any]:
    """Runs `relay publish ...` with `nats_server`, and with these lines as its standard input."""

    async def publish(*arguments: str, lines: list[str] | None = None, stdin: bytes = b"") -> Ended:
        given = "".join(f"{line}\n" for line in lines).encode() if lines else stdin
        return await relay("publish", *arguments, stdin=given, NATS_URL=nats_server.url)

    return publish


async def test_arguments(publish, provisioned):
    """An update from arguments is stored with a message id made from its content; a repeat is recognised by it."""
    metadata = {"job_failure_details": {"reason": "timeout", "stage": "execution", "message": "too slow"}}
    for repeated in ("", " (duplicate: it was stored before)"):
        ended = await publish(A.upper(), "failed", "--metadata", json.dumps(metadata))
        assert Ended(0, f"{A} failed: JOB_STATUS sequence 1{repeated}\n", "") == ended
    stored = await provisioned.jetstream().get_msg("JOB_STATUS", 1)
    expected = JobStatusUpdate.model_validate_json(document(A, "failed", metadata=metadata))
    assert expected == JobStatusUpdate.model_validate_json(stored.data)
    assert message_id(expected) == stored.headers["Nats-Msg-Id"]


@pytest.mark.usefixtures("provisioned")
async def test_lines(publish):
    """Lines are published in order; bad ones are reported with their number and skipped, with exit code 1."""
    bad = ("nonsense", document(B, "lost"), document(B, extra=1))
    ended = await publish("-", lines=[document(), bad[0], "", bad[1], document(A, "accepted"), document(A), bad[2]])
    assert 1 == ended.code
    assert [
        f"{A} received: JOB_STATUS sequence 1",
        f"{A} accepted: JOB_STATUS sequence 2",
        f"{A} received: JOB_STATUS sequence 1 (duplicate: it was stored before)",
    ] == ended.out.splitlines()
    problems = ("line 2: the update: Invalid JSON", "line 4: status: Input should be", "line 7: extra: Extra inputs")
    for line, problem in zip(ended.err.splitlines(), problems, strict=True):
        assert line.startswith(f"relay: {problem}")


@pytest.mark.usefixtures("provisioned")
async def test_many_lines(publish):
    """More lines than fit in the window are all stored, and reported in the order of the input."""
    uuids = [f"00000000-0000-4000-8000-{number:012x}" for number in range(1000)]
    ended = await publish("--stdin", lines=[document(uuid) for uuid in uuids])
    assert (0, "") == (ended.code, ended.err)
    assert uuids == [line.split()[0] for line in ended.out.splitlines()]
    assert set(range(1, 1001)) == {int(line.split()[-1]) for line in ended.out.splitlines()}


@pytest.mark.usefixtures("provisioned")
async def test_line_by_line_until_ctrl_c(nats_server, tmp_path):
    """Each line is published when it comes, not when the input ends; Ctrl-C ends the command without a traceback."""
    process = await start_command(tmp_path, "publish", "-", NATS_URL=nats_server.url)
    async with asyncio.timeout(TIMEOUT_S):
        for sequence, status in enumerate(("received", "accepted"), start=1):
            process.stdin.write(document(A, status).encode() + b"\n")
            assert f"{A} {status}: JOB_STATUS sequence {sequence}\n".encode() == await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        await process.wait()
        assert (130, b"") == (process.returncode, await process.stderr.read())
        process.stdin.close()


@pytest.mark.usefixtures("provisioned")
async def test_later_update_does_not_overtake_one_that_failed(publish):
    """If an update cannot be published, its job's later ones are not published, and other jobs go on."""
    huge = document(A, "completed", metadata={"artifacts": "x" * 9_000_000})
    ended = await publish("-", lines=[document(A), huge, document(A, "failed"), document(B)])
    first, second = ended.err.splitlines()
    assert 1 == ended.code
    assert [f"{A} received: JOB_STATUS sequence 1", f"{B} received: JOB_STATUS sequence 2"] == ended.out.splitlines()
    assert "max_payload" in first
    assert "relay: line 3: not published, because line 2 of the same job was not, and must come first" == second


async def test_raw(publish, provisioned):
    """`--raw` publishes any bytes, and repeats them if called again, so that dead letters can be tried out."""
    for sequence in (1, 2):
        ended = await publish("--raw", A, stdin=b"\xff not an update")
        assert Ended(0, f"{A}: JOB_STATUS sequence {sequence}\n", "") == ended
    assert b"\xff not an update" == (await provisioned.jetstream().get_msg("JOB_STATUS", 2)).data


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give UUID and STATUS"),
        ((A,), "give UUID and STATUS"),
        (("--raw", A, "received"), "give UUID and STATUS"),
        (("--raw", "-"), "give UUID and STATUS"),
        (("--raw", "a *"), "'a *' cannot be part of a subject"),
        (("-", "received"), "uuid: Input should be a valid UUID"),
        (("--stdin", A), "give UUID and STATUS"),
        ((A, "lost"), "status: Input should be"),
        ((A, "received", "--metadata", "{"), "--metadata is not JSON"),
        ((A, "received", "--metadata", "[]"), "metadata: Input should be an object"),
    ],
)
async def test_usage(relay, arguments, problem):
    """Arguments that are no update end with exit code 2 before a server is asked."""
    ended = await relay("publish", *arguments)
    assert (2, "") == (ended.code, ended.out)
    assert problem in ended.err


async def test_without_stream(publish):
    """If no stream captures updates, the command says so, and what to run."""
    cause = "no stream captures this subject, or its servers elect a leader; if it lasts, run `relay provision`"
    expected = f"relay: publish on job.status.{A} was not confirmed: {cause}\n"
    assert Ended(1, "", expected) == await publish(A, "received")


@pytest.mark.parametrize("just_then", [False, True])
def test_lines_that_nobody_takes_any_more(monkeypatch, just_then):
    """When the command ends, as by Ctrl-C, the thread that reads ahead ends as well, without a traceback; also if the
    event loop ends just when it is given a line.
    """
    reading, writing = os.pipe()
    os.write(writing, b"line\n" * 1000)
    os.close(writing)
    failed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(stdin, "_STDIN", reading)
    before = set(threading.enumerate())

    async def first_line() -> bytes:
        line = await anext(stdin.stdin_lines())
        if just_then:
            monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda *_: concurrent.futures.Future())
        return line

    assert b"line\n" == asyncio.run(first_line())
    for thread in set(threading.enumerate()) - before:
        thread.join()
    os.close(reading)
    assert [] == failed
