"""`relay serve`: real processes, their logs and their exit codes."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import termios
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from bittensor_wallet import Keypair
from cli_kit import TIMEOUT_S, Ended, hotkey_file, start_command

from relay.contract.model import JobStatusUpdate
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import answer_late, stall
from relay.producer import publish_update
from relay.topology.consumer_state import find_consumer_state

JOB = "00000000-0000-4000-8000-00000000000a"
HOTKEY = Keypair.create_from_uri("//Alice")
NOWHERE = "ws://127.0.0.1:1/ws/v0/"


class Serving:
    """A running `relay serve`, and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []

    async def logged(self, text: str) -> dict[str, Any]:
        """Wait for the next log line whose event contains `text`."""
        async with asyncio.timeout(TIMEOUT_S):
            async for line in self.process.stderr:
                self.log.append(json.loads(line))
                if text in self.log[-1]["event"]:
                    return self.log[-1]
        raise AssertionError(f"it ended without logging {text!r}: {self.log}")

    async def ended(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            await self.process.communicate()
        return self.process.returncode


@pytest.fixture
async def simulator() -> AsyncIterator[FacilitatorSimulator]:
    async with FacilitatorSimulator([HOTKEY.public_key.hex()]) as simulator:
        yield simulator


@pytest.fixture
def serve(nats_server, simulator, tmp_path) -> Callable[..., Any]:
    """`async with serve("--provision") as serving`: uses the hotkey; killed at the end if it still runs.

    `before` is called in the new process before the command starts.
    """

    @contextlib.asynccontextmanager
    async def serve(*arguments: str, before: Callable[[], None] | None = None) -> AsyncIterator[Serving]:
        addresses = {"NATS_URL": nats_server.url, "FACILITATOR_URL": simulator.url, "HTTP_PORT": "0"}
        given = {"LOG_FORMAT": "json", "FACILITATOR_HOTKEY_FILE": hotkey_file(tmp_path, HOTKEY)}
        process = await start_command(tmp_path, "serve", *arguments, before=before, **addresses, **given)
        try:
            yield Serving(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    return serve


async def readyz(port: int) -> tuple[int, dict[str, Any]]:
    def get() -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    status, body = await asyncio.to_thread(get)
    return status, json.loads(body)


def statuses(simulator: FacilitatorSimulator) -> list[str]:
    return [row.status for row in simulator.rows]


async def publish(client, *statuses: str) -> None:
    for status in statuses:
        await publish_update(client, JobStatusUpdate(uuid=JOB, status=status))


async def unsettled(client) -> int:
    """How many updates are stored, but neither acknowledged nor dead-lettered."""
    return sum([(await find_consumer_state(client, lane, timeout_s=5)).unsettled for lane in range(4)])


async def test_without_facilitator_url(relay):
    """Without the Facilitator's address the command prints one line with the variable, and ends with exit code 2."""
    ended = await relay("serve")
    assert (2, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert ended.err.startswith("relay: RELAY_FACILITATOR_URL='' is not allowed: ")


async def test_unusable_hotkey(relay, tmp_path):
    """With a missing or invalid hotkey file the command prints one line that names it, and ends with exit code 2."""
    path = tmp_path / "hotkey"
    settings = {"FACILITATOR_URL": NOWHERE, "FACILITATOR_HOTKEY_FILE": str(path)}
    said = f"relay: hotkey file {path}: there is no such file; check RELAY_FACILITATOR_HOTKEY_FILE\n"
    assert Ended(2, "", said) == await relay("serve", **settings)
    path.write_text("not a key")
    wrong = await relay("serve", **settings)
    assert (2, "", 1) == (wrong.code, wrong.out, wrong.err.count("\n"))
    assert wrong.err.startswith(f"relay: hotkey file {path}: it is not a bittensor wallet key file")


async def test_relays_and_drains(serve, simulator, provisioned):
    """It authenticates and relays. After SIGTERM it waits for outstanding answers, acknowledges, and exits with 0."""
    simulator.inject(answer_late(0.5), status="accepted")
    async with serve() as serving:
        await publish(provisioned, "received", "accepted")
        await simulator.wait_for(lambda _: len(simulator.rows) == 2, TIMEOUT_S)
        serving.process.send_signal(signal.SIGTERM)
        assert 0 == await serving.ended()
    assert ["received", "accepted"] == statuses(simulator)
    assert 0 == await unsettled(provisioned)


async def test_terminal_is_closed(serve, simulator, provisioned):
    """A relay whose terminal is closed drains. The kernel sends SIGHUP to it, and the shell does so once more."""
    simulator.inject(answer_late(0.5), status="accepted")
    master, terminal = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    async with serve(before=take_terminal) as serving:
        os.close(terminal)
        await publish(provisioned, "received", "accepted")
        await simulator.wait_for(lambda _: len(simulator.rows) == 2, TIMEOUT_S)
        os.close(master)
        await serving.logged("draining")
        serving.process.send_signal(signal.SIGHUP)
        assert 0 == await serving.ended()
    assert 0 == await unsettled(provisioned)


@pytest.mark.usefixtures("provisioned")
async def test_ends_on_sigint(serve):
    """Ctrl-C gives exit code 0, without a traceback. Under nohup, the end of the terminal means nothing."""
    async with serve(before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as serving:
        port = (await serving.logged("probes and metrics"))["port"]
        await serving.logged("connected to the Facilitator")
        serving.process.send_signal(signal.SIGHUP)
        await readyz(port)  # answered after the signal
        serving.process.send_signal(signal.SIGINT)
        await serving.logged("stopped")
        assert 0 == await serving.ended()


async def test_second_signal_ends_at_once(serve, simulator, provisioned):
    """While an answer is missing, a second SIGTERM ends the drain at once; the update is not lost."""
    simulator.inject(stall())
    async with serve() as serving:
        await publish(provisioned, "received")
        await simulator.wait_for(lambda _: len(simulator.received) == 1, TIMEOUT_S)
        serving.process.send_signal(signal.SIGTERM)
        await serving.logged("draining")
        serving.process.send_signal(signal.SIGTERM)
        assert -signal.SIGTERM == await serving.ended()
    assert 1 == await unsettled(provisioned)


async def test_waits_until_provisioned(serve, simulator, relay, nc, nats_server):
    """Before `relay provision` it says what to run and is not ready; afterwards it relays without a restart."""
    async with serve() as serving:
        port = (await serving.logged("probes and metrics"))["port"]
        said = (await serving.logged("not provisioned"))["event"]
        assert said.endswith("run `relay provision`")
        assert (503, {"ready": False, "missing": [said]}) == await readyz(port)
        assert 0 == (await relay("provision", NATS_URL=nats_server.url)).code
        await publish(nc, "received")
        await simulator.wait_for(lambda _: statuses(simulator) == ["received"], TIMEOUT_S)
        async with asyncio.timeout(TIMEOUT_S):
            while (answer := await readyz(port))[0] == 503:  # other lanes may start later
                pass
        assert (200, {"ready": True, "missing": []}) == answer


async def test_can_provision(serve, simulator, relay, nc, nats_server):
    """`relay serve --provision` needs no other command first."""
    async with serve("--provision") as serving:
        await serving.logged("connected to the Facilitator")
        assert 0 == (await relay("provision", "--check", NATS_URL=nats_server.url)).code
        await publish(nc, "received")
        await simulator.wait_for(lambda _: statuses(simulator) == ["received"], TIMEOUT_S)


async def test_permanent_problem_is_one_line(tmp_path):
    """For credentials that cannot be used it prints one line and ends, although the error comes from a task."""
    creds = tmp_path / "relay.creds"
    creds.write_text("not credentials")
    given = {"NATS_CREDS": str(creds), "FACILITATOR_URL": NOWHERE, "FACILITATOR_AUTH": "none", "LOG_LEVEL": "error"}
    process = await start_command(tmp_path, "serve", HTTP_PORT="0", **given)
    async with asyncio.timeout(TIMEOUT_S):
        _, err = await process.communicate()
    assert (2, 1) == (process.returncode, err.count(b"\n"))
    assert err.startswith(b"relay: RELAY_NATS_CREDS=")
