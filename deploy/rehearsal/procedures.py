"""Carries out each procedure of docs/operations.md under load, on a real cluster of three, and counts what is lost.

Run it from the top of the repository as `make rehearse-procedures`, with `nats` 0.5.0 or newer on PATH; with arguments,
only those procedures: `procedures.py lanes_raised lanes_lowered`. It takes some six minutes. Two relays and a producer
run all the time, as processes of their own. After each procedure every update whose publish was confirmed must be at
the Facilitator, each job's in order; otherwise it ends with exit code 1.

For old and new version side by side it takes the older one from git: that of OLD, or 100 commits ago.
"""

import asyncio
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from rehearsed_site import ROOT, Site, require, site

from relay.contract.subjects import DLQ_STREAM, LEASE_STREAM, STATUS_STREAM, lane_consumer
from relay.local.ledger import DROPPED
from relay.topology.consumer_state import lane_consumers

OLD: Final = os.environ.get("OLD", "HEAD~100")
BACKLOG_S: Final = 3
RESTORED_WITHIN_S: Final = 30


async def do(site: Site, *arguments: str, at: Path = ROOT) -> str:
    """Run a command of the relay as the operator, which must succeed; returns what it printed."""
    code, out = await site.relay(*arguments, at=at)
    if code:
        sys.exit(f"relay {' '.join(arguments)} ended with {code}:\n{out}")
    return out


async def nats(site: Site, *arguments: str, role: str = "operator") -> str:
    """Run `nats`, which must succeed; returns what it printed."""
    code, out = await site.nats_cli(*arguments, role=role)
    if code:
        sys.exit(f"nats {' '.join(arguments)} ended with {code}:\n{out}")
    return out


async def replace_relays(site: Site) -> None:
    """One after another: the new one is connected before the old one stops."""
    for _ in range(len(site.relays)):
        await site.start_relay()
        await site.stop_relay()


async def relays_replaced(site: Site) -> None:
    await replace_relays(site)


def check_out(commit: str, folder: str) -> None:
    tree = subprocess.run(["git", "archive", commit, "relay"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=tree, check=True)


async def old_and_new_version(site: Site) -> None:
    """Back to the older version and forward again, each time `relay provision` first, with both at work in between."""
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(check_out, OLD, folder)
        for path in (Path(folder), ROOT):
            await do(site, "provision", at=path)
            for _ in range(len(site.relays)):
                await site.start_relay(at=path)
                await site.stop_relay()
                await asyncio.sleep(BACKLOG_S)


async def settings_changed(site: Site) -> None:
    """Other values of RELAY_ACK_WAIT and RELAY_MAX_DELIVER, and back."""
    for ack_wait, max_deliver in (("6", "60"), ("5", "50")):
        site.settings |= {"RELAY_ACK_WAIT": ack_wait, "RELAY_MAX_DELIVER": max_deliver}
        await do(site, "provision")
        await replace_relays(site)


async def leases_shortened(site: Site) -> None:
    for ttl in ("5", "15"):
        site.settings["RELAY_LEASE_TTL"] = ttl
        await do(site, "provision", "--downgrade")
        await replace_relays(site)


async def copies_changed(site: Site) -> None:
    """RELAY_REPLICAS 3 -> 1 -> 3."""
    for replicas in ("1", "3"):
        site.settings["RELAY_REPLICAS"] = replicas
        await do(site, "provision", "--downgrade")
    await site.cluster.until_current()


async def lanes_raised(site: Site) -> None:
    """4 -> 8 with a backlog."""
    await site.facilitator.away(DROPPED)
    await asyncio.sleep(BACKLOG_S)
    site.settings["RELAY_LANES"] = "8"
    provisioning = asyncio.create_task(do(site, "provision"))
    await asyncio.sleep(BACKLOG_S)
    await site.facilitator.back()
    await provisioning
    await replace_relays(site)


async def lanes_lowered(site: Site) -> None:
    """8 -> 4, at a moment at which every update is settled."""
    site.settings["RELAY_LANES"] = "4"
    async with site.quiet():
        await do(site, "provision")
    await replace_relays(site)


async def leaders_step_down(site: Site) -> None:
    for stream in (STATUS_STREAM, LEASE_STREAM):
        await nats(site, "stream", "cluster", "step-down", stream)
    for lane in range(4):
        await nats(site, "consumer", "cluster", "step-down", STATUS_STREAM, lane_consumer(lane))
    await nats(site, "server", "cluster", "step-down", "--force", role="admin")
    await site.cluster.until_current()


async def servers_replaced(site: Site) -> None:
    """Each nats-server is stopped and started, as for an upgrade."""
    for node in site.cluster.nodes:
        await node.restart()
        await site.cluster.until_current()


async def passwords_changed(site: Site) -> None:
    """The servers get other passwords, one after another, then the relays."""
    os.environ["NATS_RELAY_PASSWORD"] = "changed"
    await servers_replaced(site)
    await replace_relays(site)


async def a_server_lost(site: Site) -> None:
    node = site.cluster.nodes[1]
    await site.cluster.kill(node)
    await asyncio.sleep(10)
    await site.cluster.start(node)
    await site.cluster.until_current()


async def the_majority_lost(site: Site) -> None:
    first, second, _ = site.cluster.nodes
    await site.cluster.kill(first)
    await site.cluster.kill(second)
    await asyncio.sleep(20)  # the leases end
    await site.cluster.start(first)
    await site.cluster.start(second)
    await site.cluster.until_current()


async def a_stream_edited(site: Site) -> None:
    """An operator's edits, of which `relay provision` puts back what would do harm."""
    await nats(site, "stream", "edit", STATUS_STREAM, "--max-age", "14d", "--force")
    await nats(site, "stream", "edit", STATUS_STREAM, "--max-bytes", "1GB", "--force")
    await nats(site, "stream", "edit", STATUS_STREAM, "--discard", "old", "--max-msgs", "1000000", "--force")
    put_back = await do(site, "provision")
    assert "discard old -> new" in put_back, put_back
    await nats(site, "stream", "edit", STATUS_STREAM, "--max-age", "7d", "--force")
    assert "everything is in place" in (checked := await do(site, "provision", "--check")), checked


async def old_updates_purged(site: Site) -> None:
    """Everything below the lowest ack floor is removed."""
    infos = await lane_consumers(site.nats)
    floor = min(info["ack_floor"]["stream_seq"] for info in infos.values())
    await nats(site, "stream", "purge", STATUS_STREAM, "--seq", str(floor), "--force")


async def a_consumer_deleted(site: Site) -> None:
    await nats(site, "consumer", "rm", STATUS_STREAM, lane_consumer(1), "--force")
    assert "start 1 -> " in (made := await do(site, "provision")), made


async def leases_deleted(site: Site) -> None:
    await nats(site, "stream", "rm", LEASE_STREAM, "--force")
    await do(site, "provision")


async def streams_restored(site: Site) -> None:
    """A backup while everything runs; then producers stop, the streams are lost, and restored."""
    with tempfile.TemporaryDirectory() as folder:
        for stream in (STATUS_STREAM, DLQ_STREAM):
            await nats(site, "backup", "stream", stream, f"{folder}/{stream}", "--no-progress")
        await restore(site, folder)


async def account_restored(site: Site) -> None:
    """The same with a backup of the whole account, taken while no bad updates come in."""
    with tempfile.TemporaryDirectory() as folder:
        await nats(site, "backup", "account", folder, "--force")
        await restore(site, folder)


async def restore(site: Site, folder: str) -> None:
    async with site.quiet():
        settled = await site.dead_letters()
        for stream in (STATUS_STREAM, DLQ_STREAM):
            await nats(site, "stream", "rm", stream, "--force")
        for stream in (DLQ_STREAM, STATUS_STREAM):
            await nats(site, "backup", "restore", "stream", f"{folder}/{stream}", "--no-progress")
        await in_place(site)
    await site.until_settled()
    if settled != (now := await site.dead_letters()):
        sys.exit(f"{settled} dead letters before the backup was restored, {now} afterwards")


async def in_place(site: Site) -> None:
    """Wait until `relay provision --check` misses nothing: the consumers of a restored stream come a moment later."""
    until_s, out = time.monotonic() + RESTORED_WITHIN_S, ""
    while "everything is in place" not in out:
        assert time.monotonic() < until_s, out
        _, out = await site.relay("provision", "--check")


PROCEDURES: Final[tuple[Callable[[Site], Awaitable[None]], ...]] = (
    *(relays_replaced, old_and_new_version, settings_changed, leases_shortened, copies_changed, lanes_raised),
    *(lanes_lowered, leaders_step_down, servers_replaced, passwords_changed, a_server_lost, the_majority_lost),
    *(a_stream_edited, old_updates_purged, a_consumer_deleted, leases_deleted, streams_restored, account_restored),
)


async def main() -> None:
    logging.disable()  # the client reports each server that it loses
    require("nats")
    chosen = [each for each in PROCEDURES if not sys.argv[1:] or each.__name__ in sys.argv[1:]]
    broken = False
    async with site() as running:
        for _ in range(2):
            await running.start_relay()
        print("procedure                took longest publish  updates  lost reordered  repeats", flush=True)
        for procedure in chosen:
            running.longest_s, began_s, before = 0.0, time.monotonic(), running.counted()
            await procedure(running)
            took_s = time.monotonic() - began_s
            lost = await running.until_settled()
            running.require_relays()
            updates, reordered, repeats = (now - then for now, then in zip(running.counted(), before, strict=True))
            broken = broken or bool(lost or reordered)
            print(
                f"{procedure.__name__.replace('_', ' '):22} {took_s:4.0f} s {running.longest_s:13.1f} s {updates:8}"
                f" {lost:5} {reordered:9} {repeats:8}",
                flush=True,
            )
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    asyncio.run(main())
