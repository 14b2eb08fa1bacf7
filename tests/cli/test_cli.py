"""The command `relay` as a user meets it: real processes, their output and their exit codes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bittensor_wallet import Keyfile, Keypair
from typer.testing import CliRunner

from relay.cli import program
from relay.contract.model import JobStatusUpdate
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import answer_late, stall
from relay.local.server import NatsServer
from relay.nats.connection import api_request
from relay.producer import message_id, publish_update

A, B = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
HOTKEY = Keypair.create_from_uri("//Alice")
TIMEOUT_S = 30


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def document(uuid: str = A, status: str = "received", **more: Any) -> str:
    return json.dumps({"uuid": uuid, "status": status, **more})


@pytest.fixture
def start(tmp_path) -> Callable[..., Any]:
    """Starts `relay ...` in an empty folder, with no settings but the given ones (`NATS_URL=...`)."""

    async def start(*arguments: str, **settings: str) -> asyncio.subprocess.Process:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", *arguments),
            cwd=tmp_path,
            env=clean
            | {"NO_COLOR": "1", "COLUMNS": "200"}
            | {f"RELAY_{name}": value for name, value in settings.items()},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    return start


@pytest.fixture
def relay(start) -> Callable[..., Any]:
    """Runs `relay ...` to its end: exit code, standard output and standard error."""

    async def relay(*arguments: str, stdin: bytes = b"", **settings: str) -> Ended:
        process = await start(*arguments, **settings)
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(stdin)
        return Ended(process.returncode, out.decode(), err.decode())

    return relay


class Serving:
    """A `relay serve` that runs, and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []

    async def logged(self, text: str) -> dict[str, Any]:
        """The next line whose event contains `text`."""
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
def serve(start, nats_server) -> Callable[..., Any]:
    @contextlib.asynccontextmanager
    async def serve(simulator: FacilitatorSimulator, *arguments: str, **settings: str) -> AsyncIterator[Serving]:
        given = {"NATS_URL": nats_server.url, "FACILITATOR_URL": simulator.url, "HTTP_PORT": "0", "LOG_FORMAT": "json"}
        process = await start("serve", *arguments, **given | {"FACILITATOR_AUTH": "none"} | settings)
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


def hotkey_file(folder: Path, keypair: Keypair = HOTKEY) -> str:
    path = folder / "hotkey"
    Keyfile(str(path)).set_keypair(keypair, encrypt=False)
    return str(path)


def rows(simulator: FacilitatorSimulator) -> list[tuple[str, str]]:
    return [(row.uuid, row.status) for row in simulator.rows]


def update(status: str = "received", uuid: str = A) -> JobStatusUpdate:
    return JobStatusUpdate.model_validate_json(document(uuid, status))


# relay


async def test_version(relay):
    """`relay --version` prints the distribution's version."""
    assert Ended(0, f"relay {version('job-status-relay')}\n", "") == await relay("--version")


@pytest.mark.parametrize("command", ["serve", "provision", "publish", "query", "top", "doctor", "dlq", "demo"])
def test_help(command):
    """Each command explains itself."""
    ended = CliRunner().invoke(program(), [command, "--help"])
    assert (0, "") == (ended.exit_code, ended.stderr)
    assert f"relay {command}" in ended.stdout


async def test_bad_setting_is_one_line(relay):
    """A setting that is not allowed ends each command with one line that names it, and exit 2."""
    expected = "relay: RELAY_LANES='many' is not allowed: a whole number from 1 to 256\n"
    for command in (["serve"], ["publish", A, "received"]):
        assert Ended(2, "", expected) == await relay(*command, LANES="many")


# relay serve


async def test_serve_without_facilitator_url(relay):
    """Without the Facilitator's address nothing is served: one line that names the variable, exit 2."""
    ended = await relay("serve")
    assert (2, "") == (ended.code, ended.out)
    assert ended.err.startswith("relay: RELAY_FACILITATOR_URL='' is not allowed: ")
    assert 1 == ended.err.count("\n")


async def test_serve_with_unusable_hotkey(relay, tmp_path):
    """A hotkey file that is missing or none ends the start with one line that names it, and exit 2."""
    path = tmp_path / "hotkey"
    settings = {"FACILITATOR_URL": "ws://127.0.0.1:1/ws/v0/", "FACILITATOR_HOTKEY_FILE": str(path)}
    missing = await relay("serve", **settings)
    path.write_text("not a key")
    wrong = await relay("serve", **settings)
    said = "relay: hotkey file {}: {}\n"
    assert Ended(2, "", said.format(path, "there is no such file; check RELAY_FACILITATOR_HOTKEY_FILE")) == missing
    assert (2, "", 1) == (wrong.code, wrong.out, wrong.err.count("\n"))
    assert wrong.err.startswith(f"relay: hotkey file {path}: it is not a bittensor wallet key file")


async def test_serve_relays_and_drains(serve, provisioned, tmp_path):
    """Signed in with its hotkey it relays; SIGTERM waits for the answers under way, acknowledges them, and exits 0."""
    async with FacilitatorSimulator([HOTKEY.public_key.hex()]) as simulator:
        simulator.inject(answer_late(0.5), status="accepted")
        key = hotkey_file(tmp_path)
        async with serve(simulator, FACILITATOR_AUTH="hotkey", FACILITATOR_HOTKEY_FILE=key) as serving:
            for status in ("received", "accepted"):
                await publish_update(provisioned, update(status))
            await simulator.wait_for(lambda _: len(simulator.rows) == 2, TIMEOUT_S)
            serving.process.send_signal(signal.SIGTERM)
            assert 0 == await serving.ended()
        assert [(A, "received"), (A, "accepted")] == rows(simulator)
    assert 0 == await unsettled(provisioned)


@pytest.mark.usefixtures("provisioned")
async def test_serve_ends_on_sigint(serve):
    """Ctrl-C is no error: exit 0, without a traceback."""
    async with FacilitatorSimulator() as simulator, serve(simulator) as serving:
        await serving.logged("connected to the Facilitator")
        serving.process.send_signal(signal.SIGINT)
        await serving.logged("stopped")
        assert 0 == await serving.ended()


async def test_second_signal_ends_at_once(serve, provisioned):
    """With an answer that never comes, a second SIGTERM does not wait for the drain; the update is not lost."""
    async with FacilitatorSimulator() as simulator, serve(simulator) as serving:
        simulator.inject(stall())
        await publish_update(provisioned, update())
        await simulator.wait_for(lambda _: len(simulator.received) == 1, TIMEOUT_S)
        serving.process.send_signal(signal.SIGTERM)
        await serving.logged("draining")
        serving.process.send_signal(signal.SIGTERM)
        assert -signal.SIGTERM == await serving.ended()
    assert 1 == await unsettled(provisioned)


async def test_serve_waits_until_provisioned(serve, relay, nc, nats_server):
    """Not provisioned it says what to run and is not ready; `relay provision` is all it takes."""
    async with FacilitatorSimulator() as simulator, serve(simulator) as serving:
        port = (await serving.logged("probes and metrics"))["port"]
        said = (await serving.logged("not provisioned"))["event"]
        assert said.endswith("run `relay provision`")
        assert (503, {"ready": False, "missing": [said]}) == await readyz(port)
        assert 0 == (await relay("provision", NATS_URL=nats_server.url)).code
        await publish_update(nc, update())
        await simulator.wait_for(lambda _: rows(simulator) == [(A, "received")], TIMEOUT_S)
        assert (200, {"ready": True, "missing": []}) == await readyz(port)


async def test_serve_can_provision(serve, relay, nats_server):
    """`relay serve --provision` needs no other command before it."""
    async with FacilitatorSimulator() as simulator, serve(simulator, "--provision") as serving:
        await serving.logged("connected to the Facilitator")
        checked = await relay("provision", "--check", NATS_URL=nats_server.url)
        assert Ended(0, "everything is in place\n", "") == checked
        assert 0 == (await relay("publish", A, "received", NATS_URL=nats_server.url)).code
        await simulator.wait_for(lambda _: rows(simulator) == [(A, "received")], TIMEOUT_S)


async def test_serve_says_in_one_line_what_no_waiting_mends(start):
    """A server without JetStream ends the relay with one line, however deep in its tasks that was found."""
    async with NatsServer(jetstream=False) as server:
        given = {"NATS_URL": server.url, "FACILITATOR_URL": "ws://127.0.0.1:1/ws/v0/", "FACILITATOR_AUTH": "none"}
        process = await start("serve", HTTP_PORT="0", LOG_LEVEL="error", **given)
        async with asyncio.timeout(TIMEOUT_S):
            _, err = await process.communicate()
    assert (1, 1) == (process.returncode, err.count(b"\n"))
    assert err.startswith(b"relay: JetStream is not enabled on the nats-server at ")


# relay provision


async def test_provision(relay, nats_server):
    """The first run creates everything, the second leaves everything."""
    first = await relay("provision", NATS_URL=nats_server.url)
    second = await relay("provision", NATS_URL=nats_server.url)
    streams = ["JOB_STATUS", "JOB_DLQ", "JOB_ADVISORIES", "JOB_REQUESTS", "KV_RELAY_LEASES"]
    things = [f"stream {name}" for name in streams] + [f"consumer relay-lane-{lane}" for lane in range(4)]
    assert Ended(0, "".join(f"created {thing}\n" for thing in things), "") == first
    assert Ended(0, "".join(f"left {thing}\n" for thing in things), "") == second


async def test_provision_check_finds_drift(relay, nats_server):
    """`--check` prints what differs, changes nothing and exits 1."""
    await relay("provision", NATS_URL=nats_server.url, LANES="1")
    expected = Ended(1, "consumer relay-lane-0 differs: ack_wait 5s -> 10s\n", "")
    for _ in range(2):
        assert expected == await relay("provision", "--check", NATS_URL=nats_server.url, LANES="1", ACK_WAIT="10")


async def test_provision_spells_out_what_it_refuses(relay, nats_server, nc):
    """A change that would endanger updates is refused, reason by reason, with exit 1."""
    await relay("provision", NATS_URL=nats_server.url)
    await publish_update(nc, update())
    ended = await relay("provision", NATS_URL=nats_server.url, LANES="5")
    first, *reasons = ended.err.splitlines()
    assert (1, "", "relay: refused, nothing was changed:") == (ended.code, ended.out, first)
    assert [True] == [reason.startswith("  lanes 4 -> 5 while 1 updates are not settled") for reason in reasons]


async def test_no_server_is_one_line(relay, unused_url):
    """With no nats-server there, each command that needs one says so in one line, and exits 1."""
    for command in (["provision"], ["provision", "--check"], ["publish", A, "received"], ["publish", "-"]):
        ended = await relay(*command, NATS_URL=unused_url)
        assert (1, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
        assert ended.err.startswith(f"relay: no NATS connection to {unused_url}: ")


@pytest.fixture
async def unused_url() -> str:
    """Where nothing listens any more."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"nats://127.0.0.1:{port}"


# relay publish


async def test_publish_arguments(relay, provisioned, nats_server):
    """One update from arguments is stored under its content's message id; again, it is recognised."""
    metadata = {"job_failure_details": {"reason": "timeout", "stage": "execution", "message": "too slow"}}
    arguments = ("publish", A.upper(), "failed", "--metadata", json.dumps(metadata))
    first = await relay(*arguments, NATS_URL=nats_server.url)
    again = await relay(*arguments, NATS_URL=nats_server.url)
    assert Ended(0, f"{A} failed: JOB_STATUS sequence 1\n", "") == first
    assert Ended(0, f"{A} failed: JOB_STATUS sequence 1 (duplicate: it was stored before)\n", "") == again
    stored = await provisioned.jetstream().get_msg("JOB_STATUS", 1)
    expected = JobStatusUpdate.model_validate_json(document(A, "failed", metadata=metadata))
    assert expected == JobStatusUpdate.model_validate_json(stored.data)
    assert message_id(expected) == stored.headers["Nats-Msg-Id"]


@pytest.mark.usefixtures("provisioned")
async def test_publish_lines(relay, nats_server):
    """Lines are published in their order; bad ones are named with their number and left out, and the exit is 1."""
    lines = [
        document(),
        "nonsense",
        "",
        document(B, "lost"),
        document(A, "accepted"),
        document(A),
        document(B, extra=1),
    ]
    ended = await relay("publish", "-", stdin="\n".join(lines).encode(), NATS_URL=nats_server.url)
    assert 1 == ended.code
    assert [
        f"{A} received: JOB_STATUS sequence 1",
        f"{A} accepted: JOB_STATUS sequence 2",
        f"{A} received: JOB_STATUS sequence 1 (duplicate: it was stored before)",
    ] == ended.out.splitlines()
    problems = ("line 2: the update: Invalid JSON", "line 4: status: Input should be", "line 7: extra: Extra inputs")
    assert [True] * 3 == [
        line.startswith(f"relay: {problem}") for line, problem in zip(ended.err.splitlines(), problems, strict=True)
    ]


@pytest.mark.usefixtures("provisioned")
async def test_publish_many_lines(relay, nats_server):
    """More lines than fit in the window are all stored, and reported in the order of the input."""
    uuids = [f"00000000-0000-4000-8000-{number:012x}" for number in range(1000)]
    lines = "".join(document(uuid) + "\n" for uuid in uuids)
    ended = await relay("publish", "--stdin", stdin=lines.encode(), NATS_URL=nats_server.url)
    assert (0, "") == (ended.code, ended.err)
    assert uuids == [line.split()[0] for line in ended.out.splitlines()]
    assert set(range(1, 1001)) == {int(line.split()[-1]) for line in ended.out.splitlines()}


@pytest.mark.usefixtures("provisioned")
async def test_publish_answers_line_by_line(start, nats_server):
    """A line is published and reported when it comes, not when the input ends."""
    process = await start("publish", "-", NATS_URL=nats_server.url)
    async with asyncio.timeout(TIMEOUT_S):
        for sequence, status in enumerate(("received", "accepted"), start=1):
            process.stdin.write(document(A, status).encode() + b"\n")
            assert f"{A} {status}: JOB_STATUS sequence {sequence}\n".encode() == await process.stdout.readline()
        assert (b"", b"") == await process.communicate(b"")
    assert 0 == process.returncode


@pytest.mark.usefixtures("provisioned")
async def test_ctrl_c_does_not_wait_for_input(start, nats_server):
    """Ctrl-C ends a publish that waits for input at once, without a traceback."""
    process = await start("publish", "-", NATS_URL=nats_server.url)
    async with asyncio.timeout(TIMEOUT_S):
        process.stdin.write(document().encode() + b"\n")
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        await process.wait()
        assert (130, b"") == (process.returncode, await process.stderr.read())
        process.stdin.close()


@pytest.mark.usefixtures("provisioned")
async def test_later_update_does_not_overtake_one_that_failed(relay, nats_server):
    """If an update cannot be published, its job's later ones are held back, and other jobs' are not."""
    huge = document(A, "completed", metadata={"artifacts": "x" * 1_100_000})
    lines = "\n".join((document(A), huge, document(A, "unknown"), document(B)))
    ended = await relay("publish", "-", stdin=lines.encode(), NATS_URL=nats_server.url)
    first, second = ended.err.splitlines()
    assert 1 == ended.code
    assert [f"{A} received: JOB_STATUS sequence 1", f"{B} received: JOB_STATUS sequence 2"] == ended.out.splitlines()
    assert "max_payload" in first
    assert "relay: line 3: not published, because line 2 of the same job was not, and must come first" == second


async def test_publish_raw(relay, provisioned, nats_server):
    """`--raw` publishes whatever it is given, and again if asked again, so that dead letters can be tried out."""
    for sequence in (1, 2):
        ended = await relay("publish", "--raw", A, stdin=b"\xff not an update", NATS_URL=nats_server.url)
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
def test_publish_usage(arguments, problem, tmp_path, monkeypatch):
    """Arguments that make no update end with exit 2 before any server is asked."""
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(program(), ["publish", *arguments], env={"COLUMNS": "200"})
    assert (2, "") == (ended.exit_code, ended.stdout)
    assert problem in ended.stderr


async def test_publish_without_stream(relay, nats_server):
    """Where no stream captures updates, the command says so and what to run."""
    cause = "no stream captures this subject, or its servers elect a leader; if it lasts, run `relay provision`"
    expected = f"relay: publish on job.status.{A} was not confirmed: {cause}\n"
    assert Ended(1, "", expected) == await relay("publish", A, "received", NATS_URL=nats_server.url)


async def unsettled(client) -> int:
    """How many updates are stored and neither acknowledged nor dead-lettered."""
    infos = [await api_request(client, f"$JS.API.CONSUMER.INFO.JOB_STATUS.relay-lane-{lane}") for lane in range(4)]
    return sum(info["num_pending"] + info["num_ack_pending"] for info in infos)
