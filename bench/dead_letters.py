"""Dead letters: listing many with flat memory, and replaying many as fast as the server takes them.

    python -m bench.dead_letters [--letters 100000] [--replays 10000] [--rounds 3] [--servers 1] [--json FILE]

An embedded nats-server, or a cluster of three with three replicas, holds the dead letters. `relay dlq list` and
`relay dlq replay` run as processes of their own, as an operator runs them.

- List: the time and the peak memory of listing all of them, and of listing a tenth. The difference shows what grows
  with the number of dead letters.
- Replay: the rate of `relay dlq replay --all`, from the first to the last update stored. The floor is the time of the
  same requests (publish, remove the source, remove the dead letter), encoded beforehand and sent over a bare socket
  with the same window, by a server of its own in the same run: the server cannot be asked faster. A replay also
  has to read the dead letters. The processor time of the command and of the server shows which of the two waited for
  the other.
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

from bench.ending import end_in_order
from bench.request_floor import measure, publish, removal
from relay.contract.environment import load_settings
from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM, api_stream_info, dlq_subject, job_filter, status_subject
from relay.dead_letters import window
from relay.local.cluster import NatsCluster
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.jetstream import api_request, publish_confirmed
from relay.topology.provision import provision, topology_of

PUBLISHERS = 256


@asynccontextmanager
async def provisioned(servers: int = 1) -> AsyncIterator[tuple[Client, dict[str, str]]]:
    """A connection to a server or a cluster with the relay's streams, and the environment of its commands."""
    async with NatsServer() if servers == 1 else NatsCluster() as broker:
        nodes = (broker,) if isinstance(broker, NatsServer) else broker.nodes
        environment = {
            "PATH": os.environ["PATH"],
            "RELAY_NATS_URL": nodes[0].url,
            "RELAY_REPLICAS": str(servers),
            "SERVER_PIDS": " ".join(str(node.pid) for node in nodes),
        }
        settings = load_settings(environment, None)
        nc = await connect(settings.nats, name="bench")
        try:
            await provision(nc, topology_of(settings.delivery))
            yield nc, environment
        finally:
            await close(nc)


async def publish_many(nc: Client, messages: list[tuple[str, bytes, dict[str, str]]]) -> float:
    """Publish all, many at a time, each with its PubAck; returns the rate in messages a second."""
    remaining = iter(messages)

    async def publish() -> None:
        for subject, body, headers in remaining:
            await publish_confirmed(nc, subject, body, headers, timeout_s=30)

    began = time.perf_counter()
    await asyncio.gather(*(publish() for _ in range(PUBLISHERS)))
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
    # Not asyncio's subprocess: its event loop would wait for the process as well, and only one waiter gets its usage.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)  # noqa: ASYNC220 - starting is quick
    _, status, usage = await asyncio.to_thread(os.wait4, process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"relay {' '.join(arguments)} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def job_of(sequence: int) -> str:
    """The UUID of a job. Five consecutive sequences share it, as when the Facilitator does not know a job."""
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


async def write_dead_letters(nc: Client, count: int) -> list[str]:
    """Write `count` dead letters, each of another job, and their updates under the same sequences; returns the jobs."""
    jobs = [str(uuid.uuid4()) for _ in range(count)]
    # One after another, because the sequence of each has to be known.
    for job in jobs:
        await publish_confirmed(nc, status_subject(job), body_of(job), {})
    for sequence, job in enumerate(jobs, 1):
        await publish_confirmed(nc, *letter_of(job, sequence))
    return jobs


async def require_moved(nc: Client, count: int) -> None:
    states = [(await api_request(nc, api_stream_info(stream)))["state"] for stream in (STATUS_STREAM, DLQ_STREAM)]
    if [state["messages"] for state in states] != [count, 0]:
        raise SystemExit("not every dead letter was replayed, or not every source is gone")


async def measure_floor(count: int, servers: int) -> dict[str, Any]:
    async with provisioned(servers) as (nc, environment):
        jobs = await write_dead_letters(nc, count)
        marks = {"Nats-Msg-Id": "", "Relay-Replayed-From": "1", "Relay-History": "job_not_found 5 2026-11-22T00:00:00Z"}
        work = [
            (
                publish(status_subject(job), body_of(job), marks | {"Nats-Msg-Id": job} | condition_of(job, sequence)),
                removal(sequence, sequence),
            )
            for sequence, job in enumerate(jobs, 1)
        ]
        used_s = server_processor_s(environment)
        took_s = await measure(environment["RELAY_NATS_URL"], work, window.WINDOW)
        used_s = server_processor_s(environment) - used_s
        await require_moved(nc, count)
    return {"floor_per_s": round(count / took_s), "floor_server_us": round(used_s / count * 1e6)}


async def measure_replay(replays: int, servers: int) -> dict[str, Any]:
    async with provisioned(servers) as (nc, environment):
        _, _, idle_s = await relay(environment, "dlq", "replay", "--all")
        await write_dead_letters(nc, replays)
        server_s = server_processor_s(environment)
        took_s, peak_mib, processor_s = await relay(environment, "dlq", "replay", "--all")
        server_s = server_processor_s(environment) - server_s
        await require_moved(nc, replays)
        replay_s = await time_between(nc, replays + 1, 2 * replays)
    return {
        "replays": replays,
        "replay_per_s": round((replays - 1) / replay_s),
        "command_us": round((processor_s - idle_s) / replays * 1e6),
        "server_us": round(server_s / replays * 1e6),
        "command_idle_share": round(1 - (processor_s - idle_s) / replay_s, 2),
        "command_s": round(took_s, 2),
        "peak_mib": round(peak_mib, 1),
    }


def measure_both(replays: int, servers: int) -> dict[str, Any]:
    floor, replay = uvloop.run(measure_floor(replays, servers)), uvloop.run(measure_replay(replays, servers))
    return replay | floor | {"ratio": round(replay["replay_per_s"] / floor["floor_per_s"], 2)}


def condition_of(job: str, sequence: int) -> dict[str, str]:
    prefix = "Nats-Expected-Last-Subject-Sequence"
    return {prefix: str(sequence), f"{prefix}-Subject": job_filter(job)}


def server_processor_s(environment: dict[str, str]) -> float:
    """The processor time that the servers have used since they started, in seconds."""
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in environment["SERVER_PIDS"].split()]
    ticks = [int(field) for stat in stats for field in stat.rpartition(")")[2].split()[11:13]]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


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
    parser.add_argument("--rounds", type=int, default=3, help="how often to replay")
    parser.add_argument("--servers", type=int, choices=(1, 3), default=1, help="with 3, each stores all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    end_in_order()
    host = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    figures = {
        "host": host,
        "list": uvloop.run(measure_list(arguments.letters)),
        "replay": [measure_both(arguments.replays, arguments.servers) for _ in range(arguments.rounds)],
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
