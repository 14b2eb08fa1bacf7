"""Commands as process 1, as in a container: what Linux does for every other process, they must do themselves.

If these tests fail with a line of `unshare`, this system does not let its users make process namespaces.
"""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from namespaces import as_process_1
from polling import until
from process_kit import TIMEOUT_S, RelayProcess, started
from relay_kit import new_job

from relay.local.faults import stall

# The orphan is there before the command, and is its child from its first moment on. SIGCHLD, which tells of the end
# of a child, is ignored as after a careless start script.
AS_PROCESS_1 = as_process_1("bash", "-c", "(sleep 600 >/dev/null 2>&1 &); trap '' CHLD; exec \"$@\"", "sh")
WITH_BLOCKED_SIGNALS = (
    sys.executable,
    "-c",
    """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
os.execv(sys.argv[1], sys.argv[1:])
""",
)
BUSY_LIBRARY = """
import itertools
print("imported", flush=True)
sum(itertools.repeat(1, 10**12))  # computes for an hour without leaving C, as the decryption of a hotkey does for 5 s
"""


class Process1:
    def __init__(self, command: RelayProcess) -> None:
        self.command = command

    @property
    def pid(self) -> int:
        (pid,) = children(self.command.process.pid)
        return pid

    def signal(self, number: int) -> None:
        """Send a signal as the container's runtime does, from outside."""
        os.kill(self.pid, number)

    async def reaps_its_orphan(self) -> None:
        """End the orphan, and wait until its exit status is taken."""
        (orphan,) = [pid for pid in children(self.pid) if name(pid) == "sleep"]
        os.kill(orphan, signal.SIGKILL)
        await until(lambda: orphan not in children(self.pid), TIMEOUT_S)


@contextlib.asynccontextmanager
async def as_process_1(*arguments: str, settings: dict[str, str]) -> AsyncIterator[Process1]:
    """`relay ...` as process 1 of a namespace of its own, with an orphan."""
    async with started("-m", "relay", *arguments, settings=settings, below=AS_PROCESS_1) as command:
        yield Process1(command)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.fixture
def busy_library(tmp_path: Path) -> dict[str, str]:
    """Settings with which a command spends an hour with importing a library."""
    (tmp_path / "typer.py").write_text(BUSY_LIBRARY)
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("arguments", [("serve",), ("serve", "--workers", "2"), ("top",)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_start(busy_library, arguments, number):
    """A signal ends process 1 while it still imports its libraries, with the status of a process that was signalled."""
    async with as_process_1(*arguments, settings=busy_library) as process_1:
        await process_1.command.says("imported")
        process_1.signal(number)
        assert 128 + number == await process_1.command.ended()
    assert ["imported\n"] == process_1.command.lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_start_of_any_process(busy_library, number):
    """The same for any other process, without a traceback, and although its parent has blocked the signal."""
    async with started("-m", "relay", "serve", settings=busy_library, below=WITH_BLOCKED_SIGNALS) as command:
        await command.says("imported")
        command.process.send_signal(number)
        assert -number == await command.ended()
    assert ["imported\n"] == command.lines


@pytest.mark.parametrize(("arguments", "status"), [((), 128 + signal.SIGTERM), (("--workers", "2"), 1)])
async def test_a_second_signal_and_orphans(scene, arguments, status):
    """As process 1, a relay and a parent of workers reap orphans, and a second SIGTERM ends them at once."""
    async with as_process_1("serve", *arguments, settings=scene.environment) as process_1:
        workers = int(arguments[-1]) if arguments else 1
        await process_1.command.says("connected to the Facilitator", times=workers)
        await process_1.reaps_its_orphan()
        scene.facilitator.inject(stall())
        job = new_job()
        await scene.publish(job)
        await scene.facilitator.wait_for(lambda facilitator: job in str(facilitator.received), TIMEOUT_S)
        process_1.signal(signal.SIGTERM)
        await process_1.command.says("draining", times=workers)
        process_1.signal(signal.SIGTERM)
        assert status == await process_1.command.ended()
    assert 1 == await scene.unsettled()


async def test_the_exit_status_of_process_1():
    """Process 1 ends with the exit status of its command."""
    async with as_process_1("serve", settings={}) as process_1:
        assert 2 == await process_1.command.ended()
