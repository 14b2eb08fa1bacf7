"""Dead letters: listing many with flat memory, and replaying many as fast as the server takes them.

    python -m bench.dead_letters [--letters 100000] [--replays 10000] [--json FILE]

An embedded nats-server holds the dead letters. `relay dlq list` and `relay dlq replay` run as processes of their own,
as an operator runs them.

- List: the time and the peak memory of listing all of them, and of listing a tenth: what grows with the number of
  dead letters shows in between.
- Replay: the rate of `relay dlq replay --all`, from the first to the last update stored, against the rate at which
  one connection publishes the same updates and awaits their PubAcks, with the same window, in the same run. A replay
  also reads each dead letter and removes it, so that it makes two requests where the bare publish makes one. What the
  command used of the processor shows whether it waited for the server or the server for it.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from nats.aio.client import Client

from relay.app import topology_of
from relay.broker.connection import api_request, close, connect, publish_confirmed
from relay.broker.topology import provision
from relay.local.server import NatsServer
from relay.settings import load_settings
from relay.subjects import DLQ_STREAM, STATUS_STREAM, api_stream_info, dlq_subject, status_subject

WINDOW = 256


@asynccontextmanager
async def provisioned() -> AsyncIterator[tuple[Client, dict[str, str]]]:
    """A connection to a server with the relay's streams, and the environment of its commands."""
    async with NatsServer() as server:
        environment = {"RELAY_NATS_URL": server.url, "PATH": os.environ["PATH"]}
        settings = load_settings(environment | {"RELAY_NATS_URL": server.url}, None)
        nc = await connect(settings.nats, name="bench")
        try:
            await provision(nc, topology_of(settings.delivery))
            yield nc, environment
        finally:
            await close(nc)


async def publish_many(nc: Client, messages: list[tuple[str, bytes, dict[str, str]]]) -> float:
    """Publish all, a window of them at a time, each with its PubAck; returns how many a second."""
    remaining = iter(messages)

    async def publish() -> None:
        for subject, body, headers in remaining:
            await publish_confirmed(nc, subject, body, headers, timeout_s=30)

    began = time.perf_counter()
    await asyncio.gather(*(publish() for _ in range(WINDOW)))
    return len(messages) / (time.perf_counter() - began)


def letter_of(job: str, sequence: int) -> tuple[str, bytes, dict[str, str]]:
    headers = {
        "Relay-Reason": "job_not_found",
        "Relay-Error": "the Facilitator answered 5 times, the last time: job.not_found: it does not exist.",
        "Relay-Attempts": "5",
        "Relay-Source-Subject": status_subject(job),
        "Relay-Source-Sequence": str(sequence),
        "Relay-Failed-At": "2026-11-22T00:00:00.000+00:00",
    }
    return dlq_subject(job), body_of(job), headers


def body_of(job: str) -> bytes:
    return json.dumps({"uuid": job, "status": "accepted", "metadata": {"padding": "x" * 200}}).encode()


async def relay(environment: dict[str, str], *arguments: str) -> tuple[float, float, float]:
    """Run a command to its end; returns its seconds, its peak memory in MiB, and its seconds of processor time."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "relay", *arguments]
    # Not by asyncio: the event loop would wait for the process as well, and of two only one is told what it used.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)  # noqa: ASYNC220 - it starts at once
    _, status, usage = await asyncio.to_thread(os.wait4, process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"relay {' '.join(arguments)} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def job_of(sequence: int) -> str:
    """A job with five dead letters, as jobs have that the Facilitator does not know."""
    return str(uuid.UUID(int=sequence // 5))


async def measure_list(letters: int) -> dict[str, Any]:
    async with provisioned() as (nc, environment):
        for start in range(0, letters, 10_000):
            sequences = range(start + 1, min(start + 10_000, letters) + 1)
            await publish_many(nc, [letter_of(job_of(sequence), sequence) for sequence in sequences])
        tenth_s, tenth_mib, _ = await relay(environment, "dlq", "list", "--limit", str(letters // 10))
        all_s, all_mib, _ = await relay(environment, "dlq", "list")
    return {
        "letters": letters,
        "list_s": round(all_s, 2),
        "list_per_s": round(letters / all_s),
        "peak_mib": round(all_mib, 1),
        "peak_of_a_tenth_mib": round(tenth_mib, 1),
        "list_of_a_tenth_s": round(tenth_s, 2),
    }


async def measure_replay(replays: int) -> dict[str, Any]:
    async with provisioned() as (nc, environment):
        jobs = [str(uuid.uuid4()) for _ in range(replays)]
        updates = [(status_subject(job), body_of(job), {"Nats-Msg-Id": job}) for job in jobs]
        bare_per_s = await publish_many(nc, updates)
        # Those that were just published are the updates that failed.
        sequences = dict(await stored_sequences(nc, jobs))
        await publish_many(nc, [letter_of(job, sequences[job]) for job in jobs])
        took_s, peak_mib, processor_s = await relay(environment, "dlq", "replay", "--all")
        info = await api_request(nc, api_stream_info(STATUS_STREAM))
        if (info["state"]["messages"], (await left(nc))) != (2 * replays, 0):
            raise SystemExit("not every dead letter was replayed")
        replay_s = await time_between(nc, replays + 1, 2 * replays)
    return {
        "replays": replays,
        "publish_per_s": round(bare_per_s),
        "replay_per_s": round((replays - 1) / replay_s),
        "ratio": round((replays - 1) / replay_s / bare_per_s, 2),
        "command_s": round(took_s, 2),
        "command_processor_s": round(processor_s, 2),
        "peak_mib": round(peak_mib, 1),
    }


async def stored_sequences(nc: Client, jobs: list[str]) -> list[tuple[str, int]]:
    """The job and sequence of each stored update."""
    subscription = await nc.jetstream().pull_subscribe("job.status.*.*", stream=STATUS_STREAM)
    found: list[tuple[str, int]] = []
    while len(found) < len(jobs):
        for message in await subscription.fetch(500, timeout=10):
            found.append((message.subject.split(".")[3], message.metadata.sequence.stream))
            await message.ack()
    await subscription.unsubscribe()
    return found


async def left(nc: Client) -> int:
    return (await api_request(nc, api_stream_info(DLQ_STREAM)))["state"]["messages"]


async def time_between(nc: Client, first: int, last: int) -> float:
    """Seconds from one stored update to another, on the server's clock."""
    began, ended = [(await nc.jetstream().get_msg(STATUS_STREAM, sequence)).time for sequence in (first, last)]
    assert began is not None, "the server says when it stored a message"
    assert ended is not None, "the server says when it stored a message"
    return (ended - began).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--letters", type=int, default=100_000, help="how many to list")
    parser.add_argument("--replays", type=int, default=10_000, help="how many to replay")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    host = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    figures = {
        "host": host,
        "list": uvloop.run(measure_list(arguments.letters)),
        "replay": uvloop.run(measure_replay(arguments.replays)),
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
