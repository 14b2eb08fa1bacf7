"""A name with several addresses of which the first swallows all packets, in a real hosts file."""

import asyncio
import contextlib
import os
import sys

import pytest
from namespaces import black_hole, with_hosts
from relay_kit import ACKED, Scene, new_job

NAME = "several.example"
SILENT = ("::1", "127.0.0.2")
"""The resolver gives the first one first: it is of IPv6."""
PUBLISH = """
import asyncio, sys
from relay.producer import JobStatus, JobStatusUpdate, StatusPublisher, SyncStatusPublisher

async def publish():
    async with StatusPublisher(sys.argv[1]) as publisher:
        await publisher.publish(JobStatusUpdate(uuid=sys.argv[2], status=JobStatus.RECEIVED), timeout_s=20)

asyncio.run(publish())
with SyncStatusPublisher(sys.argv[1]) as publisher:
    print(publisher.publish(JobStatusUpdate(uuid=sys.argv[2], status=JobStatus.ACCEPTED), timeout_s=20).sequence)
"""


@pytest.fixture
def in_namespace(tmp_path):
    """Start Python with a hosts file in which NAME has three addresses; ended at the end of the block."""
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{address} {NAME}\n" for address in (*SILENT, "127.0.0.1")))

    @contextlib.asynccontextmanager
    async def start(*arguments, environment):
        process = await asyncio.create_subprocess_exec(
            *with_hosts(hosts, sys.executable, *arguments),
            env={"PATH": os.environ["PATH"], **environment},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    return start


async def test_relay_and_producer(nats_server, facilitator, in_namespace):
    """Relay, commands and producers reach NATS and the Facilitator by a name whose first addresses are silent."""
    ports = nats_server.port, int(facilitator.url.split(":")[2].split("/")[0])
    with contextlib.ExitStack() as holes:
        for host in SILENT:
            for port in ports:
                holes.enter_context(black_hole(host, port))
        async with Scene(nats_server, facilitator) as scene:
            url = nats_server.url.replace("127.0.0.1", NAME)
            there = scene.environment | {
                "RELAY_NATS_URL": url,
                "RELAY_FACILITATOR_URL": facilitator.url.replace("127.0.0.1", NAME),
            }
            async with in_namespace("-m", "relay", "serve", environment=there):
                assert [ACKED] == await scene.settled(await scene.publish(new_job()), timeout_s=30)
                async with in_namespace("-c", PUBLISH, url, new_job(), environment={}) as producer:
                    assert b"3\n" == (await producer.communicate())[0]
                async with in_namespace("-m", "relay", "provision", "--check", environment=there) as check:
                    assert (0, True) == (await check.wait(), b"in place" in (await check.communicate())[0])
