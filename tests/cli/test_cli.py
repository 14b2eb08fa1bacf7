"""The command `relay`, and `relay provision`: output and exit codes."""

import asyncio
from importlib.metadata import version

import pytest
from cli_kit import Ended
from relay_kit import Scene

from relay.cli import COMMANDS
from relay.contract.model import JobStatusUpdate
from relay.producer import publish_update

A = "00000000-0000-4000-8000-00000000000a"


async def test_version(relay):
    """`relay --version` prints the distribution's version."""
    assert Ended(0, f"relay {version('job-status-relay')}\n", "") == await relay("--version")


@pytest.mark.parametrize("command", COMMANDS)
async def test_help(relay, command):
    """Each command has a help text."""
    ended = await relay(command, "--help")
    assert (0, "") == (ended.code, ended.err)
    assert f"Usage: relay {command}" in ended.out


@pytest.mark.parametrize("command", [["serve"], ["publish", A, "received"]], ids=["serve", "publish"])
async def test_bad_setting_is_one_line(relay, command):
    """An invalid setting ends a command with one line that names it, and exit code 2."""
    expected = "relay: RELAY_LANES='many' is not allowed: a whole number from 1 to 256\n"
    assert Ended(2, "", expected) == await relay(*command, LANES="many")


@pytest.mark.parametrize(
    "command",
    [["provision"], ["provision", "--check"], ["publish", A, "received"], ["publish", "-"], ["top", "--once"]],
    ids=" ".join,
)
async def test_no_server_is_one_line(relay, unused_url, command):
    """Without a nats-server each command that needs one prints one line about it, with exit code 1."""
    ended = await relay(*command, NATS_URL=unused_url)
    assert (1, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert ended.err.startswith(f"relay: no NATS connection to {unused_url}: ")


@pytest.fixture
async def unused_url() -> str:
    """An address without a listener."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"nats://127.0.0.1:{port}"


async def test_provision(relay, nats_server):
    """The first run creates everything, the second changes nothing."""
    streams = ["JOB_STATUS", "JOB_DLQ", "JOB_ADVISORIES", "JOB_REQUESTS", "KV_RELAY_LEASES"]
    things = [f"stream {name}" for name in streams] + [f"consumer relay-lane-{lane}" for lane in range(4)]
    for done in ("created", "left"):
        expected = Ended(0, "".join(f"{done} {thing}\n" for thing in things), "")
        assert expected == await relay("provision", NATS_URL=nats_server.url)


async def test_provision_check_finds_drift(relay, nats_server):
    """`--check` prints what differs and changes nothing; exit code 1, or 0 if nothing differs."""
    given = {"NATS_URL": nats_server.url, "LANES": "1"}
    await relay("provision", **given)
    assert Ended(0, "everything is in place\n", "") == await relay("provision", "--check", **given)
    expected = Ended(1, "consumer relay-lane-0 differs: ack_wait 5s -> 10s\n", "")
    for _ in range(2):
        assert expected == await relay("provision", "--check", **given, ACK_WAIT="10")


async def test_provision_asks_about_a_downgrade(relay, nats_server):
    """Without RELAY_LEASE_TTL in its environment, provisioning does not shorten the leases, unless it is told to."""
    assert 0 == (await relay("provision", NATS_URL=nats_server.url, LEASE_TTL="15")).code
    refused = await relay("provision", NATS_URL=nats_server.url)
    told = await relay("provision", "--downgrade", NATS_URL=nats_server.url)
    assert (1, 0) == (refused.code, told.code)
    assert "RELAY_LEASE_TTL 15 -> 5 (max_age of KV_RELAY_LEASES)" in refused.err
    assert "changed stream KV_RELAY_LEASES: max_age 15s -> 5s" in told.out


async def test_provision_compares_workers(relay, nats_server, facilitator):
    """It says in which settings the workers that run differ: when it refuses, compares, and changes."""
    given = {"NATS_URL": nats_server.url}
    async with Scene(nats_server, facilitator, LEASE_TTL="15", MAX_DELIVER="60") as scene, scene.relay():
        await scene.owned(lambda: len(scene.owners) == 4)
        refused, checked = await relay("provision", **given), await relay("provision", "--check", **given)
        agreed = await relay("provision", **given, LEASE_TTL="15", MAX_DELIVER="60")
        changed = await relay("provision", **given, LEASE_TTL="15")
    assert [True] * 4 == ["RELAY_LEASE_TTL is 5 here, and 15 where " in each.err for each in (refused, checked)] + [
        "RELAY_MAX_DELIVER is 50 here, and 60 where " in each.err for each in (refused, changed)
    ]
    assert (1, 1, "", 0) == (refused.code, checked.code, agreed.err, changed.code)


async def test_provision_spells_out_what_it_refuses(relay, nats_server, nc):
    """A change that would endanger updates is refused with all reasons and exit code 1."""
    await relay("provision", NATS_URL=nats_server.url)
    await publish_update(nc, JobStatusUpdate(uuid=A, status="received"))
    ended = await relay("provision", NATS_URL=nats_server.url, LANES="5")
    first, reason = ended.err.splitlines()
    assert (1, "", "relay: refused, nothing was changed:") == (ended.code, ended.out, first)
    assert reason.startswith("  lanes 4 -> 5 while 1 updates are not settled")
