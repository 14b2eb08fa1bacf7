"""The memory that the pages and the manifests give a worker is enough for large updates, whatever is done with them."""

import asyncio
import contextlib
import json
import re
import signal
import sys
from pathlib import Path

import pytest
from nats.errors import TimeoutError as NoAnswer
from process_kit import started
from relay_kit import Scene, new_job

from relay.contract.subjects import Reason, history_subject, query_subject
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
MIB = 1024 * 1024
MEMORY_MB = 64
"""RELAY_MEMORY_MB, the least that is allowed."""
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
sys.argv = ["relay", "serve"]
runpy.run_module("relay", run_name="__main__")
"""
LARGE = "x" * 7_000_000


def needed_mib(memory_mb: int) -> int:
    """What docs/operations.md says that a worker needs with this RELAY_MEMORY_MB."""
    (beyond,) = re.findall(r"needs at most `RELAY_MEMORY_MB` \+ (\d+) MiB", PAGE)
    return memory_mb + int(beyond)


def peak_mib(pid: int) -> int:
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) // 1024


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers all memory of a process only on Linux")
@pytest.mark.timeout(
    180
)  # it takes 10 s, but a process that gets a tenth of a processor needs more than the usual limit
async def test_large_updates_fit_into_the_memory_of_the_pages():
    """With the memory that the page names, and no more, a backlog of large updates is relayed, large dead letters are
    written, and questions about them are answered, all at the same time.
    """
    limit_mib = needed_mib(MEMORY_MB)
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, MEMORY_MB=str(MEMORY_MB), LOG_FORMAT="json", ACK_WAIT="30", LEASE_TTL="30") as scene,
    ):
        jobs = [new_job(lane) for lane in range(4)]
        updates = [await scene.publish(job, "accepted", {"text": LARGE}) for job in jobs for _ in range(5)]
        updates += [
            await scene.publish_body(job, LARGE.encode(), dead_letter=Reason.INVALID_JSON) for job in jobs for _ in "12"
        ]
        limited = ("-c", LIMITED, str(limit_mib * MIB))
        async with started(*limited, settings=scene.environment) as relay:
            await relay.says("lane taken", times=4)
            asked = [asyncio.create_task(ask(scene, subject(job))) for job in jobs * 4 for subject in SUBJECTS]
            await scene.settled(*updates, timeout_s=150)
            await asyncio.gather(*asked)
            assert limit_mib > peak_mib(relay.process.pid)
            relay.process.send_signal(signal.SIGTERM)
            assert 0 == await relay.ended(), relay.lines
        assert [] == await scene.broken_promises()


SUBJECTS = (query_subject, history_subject)


async def ask(scene: Scene, subject: str) -> None:
    with contextlib.suppress(NoAnswer):
        await scene.nc.request(subject, json.dumps({"metadata": True}).encode(), timeout=10)
