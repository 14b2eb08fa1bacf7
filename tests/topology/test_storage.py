"""Limits in bytes for streams: RELAY_STORAGE_MB, and NATS accounts that demand them."""

from pathlib import Path

import pytest
from cli_kit import make_command
from relay_kit import ACKED, Scene, missing, new_job, running

from relay.local.server import NatsServer
from relay.service.app import Relay
from relay.topology.plan import Kind, Step, Verb
from relay.topology.storage import find_overfull, find_storage_refusals, max_bytes_of

MIB = 1 << 20
ACCOUNT = """
accounts {
    RELAY {
        jetstream: {max_file: 300M, max_bytes_required: true, disk_max_stream_bytes: 210M}
        users: [{user: relay, password: relay}]
    }
    SYS {}
}
system_account: SYS
"""
DEMANDS = "the NATS account demands a limit in bytes of each stream (max_bytes_required): set RELAY_STORAGE_MB"
SIGN_IN = {"NATS_USER": "relay", "NATS_PASSWORD": "relay"}


def test_shares():
    """The shares of all streams are the whole, and each has room for a few of the largest messages or entries."""
    shares = max_bytes_of(256 * MIB)
    assert 256 * MIB == sum(shares.values())
    assert (200 * MIB, 4 * MIB) == (shares["JOB_STATUS"], min(shares.values()))


def test_a_tier_of_the_account():
    """Where an account has limits for each number of copies, those for RELAY_REPLICAS count."""
    step = Step(Verb.CREATED, Kind.STREAM, "JOB_STATUS", config={"storage": "file"})
    tiers = {"tiers": {"R1": {"limits": {}}, "R3": {"limits": {"max_bytes_required": True}}}, "limits": {}}
    assert [] == list(find_storage_refusals([step], tiers, 1))
    assert 1 == len(list(find_storage_refusals([step], tiers, 3)))


@pytest.mark.parametrize(("held", "found"), [(99, 0), (100, 0), (101, 1)])
def test_a_stream_that_holds_more(held, found):
    """A limit below what a stream holds must be asked for."""
    assert found == len(list(find_overfull({"A": {"max_bytes": 100}}, {"A": {"state": {"bytes": held}}})))


async def test_an_account_that_demands_limits(facilitator, monkeypatch, tmp_path: Path):
    """Without RELAY_STORAGE_MB, provision, doctor and /readyz say what to set; with too much of it, how much it may be;
    with it, everything is made and works, and another limit is a difference.
    """
    command = make_command(monkeypatch, tmp_path)
    async with NatsServer(extra_config=ACCOUNT) as server:
        scene = Scene(server, facilitator, **SIGN_IN, STORAGE_MB="256")
        given = {"NATS_URL": server.url, **SIGN_IN}
        refused = await command("provision", **given)
        assert (1, True) == (refused.code, DEMANDS in refused.err)
        assert DEMANDS in (await command("doctor", "--json", **given)).out
        async with running(Relay(Scene(server, facilitator, **SIGN_IN).settings, None)) as (relay, _):
            await missing(relay, DEMANDS)
        too_much = await command("provision", **given, STORAGE_MB="280")
        assert "JOB_STATUS is to have 229376000: set RELAY_STORAGE_MB to at most 256" in too_much.err
        async with scene, scene.relay():
            assert [ACKED] == await scene.settled(await scene.publish(new_job()))
            assert (0, 0) == (
                (await command("provision", "--check", **given)).code,
                (await command("provision", "--check", **given, STORAGE_MB="256")).code,
            )
            other = await command("provision", "--check", **given, STORAGE_MB="260")
            assert "stream JOB_STATUS differs: max_bytes 209715200 -> 212992000" in other.out


async def test_an_account_that_demands_limits_later(facilitator, tmp_path: Path, monkeypatch):
    """If the account comes to demand limits of streams that have none, the next change says what to set."""
    command = make_command(monkeypatch, tmp_path)
    config = tmp_path / "nats.conf"
    later = f'jetstream: {{store_dir: "store"}}\n{ACCOUNT}'
    config.write_text(later.replace(", max_bytes_required: true, disk_max_stream_bytes: 210M", ""))
    async with NatsServer(config_file=config) as server, Scene(server, facilitator, **SIGN_IN):
        config.write_text(later)
        await server.restart()
        given = {"NATS_URL": server.url, **SIGN_IN}
        refused = await command("provision", **given, LEASE_TTL="7")
        assert (1, True) == (refused.code, "RELAY_STORAGE_MB" in refused.err)
        assert "max_bytes_required" in refused.err
        assert 0 == (await command("provision", **given, LEASE_TTL="7", STORAGE_MB="256")).code
