"""`relay top`: views of a fixed size, and the command itself in a terminal and without one."""

import asyncio
import datetime as dt
import io
import json
import signal
from dataclasses import replace

import msgspec
import pytest
from cli_kit import TIMEOUT_S, on_terminal, start_command
from rich.console import Console
from snapshot_kit import LANES, WORKER, report, snapshot

from relay.cli.top_display import render
from relay.cli.top_view import TopView, document
from relay.contract.report import ConnectionReport
from relay.dead_letters.reasons import ReasonCounts
from relay.overview.snapshot import Interval, LaneSnapshot, Quantiles

SNAPSHOT = snapshot(
    lanes=tuple(LaneSnapshot(lane, WORKER, waiting=lane, delivered=1, oldest_s=0.25) for lane in range(4)),
    dead_letters=ReasonCounts(3, 3, {"refused": 2, "invalid_json": 1}),
)
INTERVAL = Interval(
    seconds=2.0,
    published=200.5,
    settled={"acknowledged": 199.0, "duplicate": 1.0, "dead_lettered": 0.5},
    retries=0.0,
    deliveries={0: 50.0, 1: 50.0, 2: 50.0, 3: 50.5},
    settled_by={WORKER: 200.5},
    latencies={"hot_path": Quantiles(400, 0.00021, 0.0018), "end_to_end": Quantiles(400, 0.012, float("inf"))},
)
AT = dt.datetime(2026, 11, 22, 3, 14, tzinfo=dt.UTC)
VIEW = TopView("nats://127.0.0.1:4222", AT, 2.0, SNAPSHOT, INTERVAL, None)


def drawn(view: TopView, width: int = 80, height: int = 24) -> list[str]:
    """The view as lines of text."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(render(view, height))
    return console.file.getvalue().rstrip("\n").split("\n")


def cells(lines: list[str], first: str) -> list[str]:
    """The words of the line that begins with `first`."""
    return next(line.split() for line in lines if line.split()[:1] == [first])


def test_view():
    """A view shows rates, latencies, lanes with owners and lag, workers and their connections, and dead letters."""
    lines = drawn(VIEW)
    assert lines[0] == "relay top  nats://127.0.0.1:4222  2026-11-22 03:14:00 UTC  every 2 s"
    assert "200.5 199.0 1.0 0.5 0.0 3/32" == " ".join(lines[2].split())
    assert ["p50", "0.21", "12.00", "-"] == cells(lines, "p50")
    assert ["p99", "1.80", ">", "60", "s", "-"] == cells(lines, "p99")
    assert ["3", WORKER, "3", "1", "50.5", "0.2", "s"] == cells(lines, "3")
    assert [WORKER, "0,1,2,3", "5", "min", "200.5", "3/32", "signed", "in"] == cells(lines, WORKER)
    assert lines[-1] == "dead letters 3: refused 2, invalid_json 1"


def many(lanes: int, workers: int) -> TopView:
    """A view with this many lanes and workers, each worker with a trouble that fills its line."""
    trouble = [ConnectionReport(32, 0, "x" * 300)]
    reports = {name: report(name, connections=trouble) for name in (f"{WORKER}{each}" for each in range(workers))}
    states = tuple(LaneSnapshot(lane, WORKER, oldest_s=float(lane)) for lane in range(lanes))
    return replace(VIEW, snapshot=snapshot(lanes=states, reports=reports, workers=frozenset(reports)))


@pytest.mark.parametrize("trouble", [None, "NATS is away " * 30])
@pytest.mark.parametrize("view", [VIEW, many(256, 64), many(1, 64), many(4, 0)])
@pytest.mark.parametrize(("width", "height"), [(60, 16), (80, 24), (200, 18)])
def test_view_fits(view, width, height, trouble):
    """Whatever there is to show, heading, lanes, workers and dead letters fit into the terminal."""
    lines = drawn(replace(view, trouble=trouble), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    for begin in ("relay top", "lane", "worker", "dead letters"):
        assert [begin] == [line[: len(begin)] for line in lines if line.startswith(begin + " ")]


def test_the_oldest_lanes_are_shown():
    """If not all lanes fit, those with the oldest updates are shown, and the number of the others."""
    lines = drawn(many(256, 1))
    shown = [int(line.split()[0]) for line in lines if line.split()[1:2] == [WORKER]]
    assert list(range(256 - len(shown), 256)) == shown
    assert any(f"and {256 - len(shown)} more lanes" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held": True}, "(waits for what an earlier owner had)"),
        ({"full": True}, "(its memory is full)"),
        ({}, ""),
    ],
)
def test_state_of_a_lane(changes, words):
    """The lane's line says beside its owner why it takes or sends nothing."""
    lanes = [msgspec.structs.replace(LANES[0], **changes), *LANES[1:]]
    shown = drawn(replace(VIEW, snapshot=replace(SNAPSHOT, reports={WORKER: report(lanes=lanes)})), width=120)
    [line] = [line for line in shown if line.split()[:2] == ["0", WORKER]]
    assert words == line.split(WORKER)[1].split("  ")[0].strip()


@pytest.mark.parametrize("state", ["held", "full"])
def test_states_of_lanes_in_the_document(state):
    """The JSON output lists the lanes that take or send nothing for one of these reasons, and no others."""
    lanes = [msgspec.structs.replace(lane, **{state: lane.lane in {1, 3}}) for lane in LANES]
    [worker] = document(replace(VIEW, snapshot=replace(SNAPSHOT, reports={WORKER: report(lanes=lanes)})))["workers"]
    assert {"held": [], "full": []} | {state: [1, 3]} == {name: worker[name] for name in ("held", "full")}


def test_view_without_rates():
    """Before the second snapshot rates are unknown, not zero; the rest is shown."""
    lines = drawn(replace(VIEW, interval=None))
    assert "- - - - - 3/32" == " ".join(lines[2].split())


def test_trouble_is_shown():
    """With NATS away this is shown above the last view; without a view it is all that is shown."""
    away = replace(VIEW, trouble="for 5 s now: no NATS connection", interval=None)
    assert "No news for 5 s now: no NATS connection" == drawn(away)[1]
    assert "dead letters 3: refused 2, invalid_json 1" == drawn(away)[-1]
    assert 2 == len(drawn(replace(away, snapshot=None)))


def test_what_is_shown_steers_no_terminal():
    """Control characters and markup in names do not take effect in the terminal."""
    evil = "\x1b]0;pwned\x07[red]x[/red]"
    shown = snapshot(lanes=(LaneSnapshot(0, evil),), dead_letters=ReasonCounts(1, 1, {evil: 1}))
    text = "\n".join(drawn(replace(VIEW, snapshot=shown), 200))
    assert "" == "".join(char for char in text if not char.isprintable() and char != "\n")
    assert 2 == text.count("[red]x[/red]")


def test_document():
    """The JSON output has the same content, with null for infinite numbers."""
    told = json.loads(json.dumps(document(VIEW)))
    assert (None, 200.5, 2.0) == tuple(told[name] for name in ("trouble", "published_per_s", "interval_s"))
    assert {"count": 400, "p50_s": 0.012, "p99_s": None} == told["latencies"]["end_to_end"]
    assert (None, [0, 1, 2, 3]) == (told["latencies"]["round_trip"], told["workers"][0]["lanes"])
    assert {"total": 3, "counted": 3, "reasons": {"refused": 2, "invalid_json": 1}} == told["dead_letters"]
    assert "away" == document(replace(VIEW, trouble="away"))["trouble"]


# The command.


async def test_json_through_an_outage(nats_server, provisioned, tmp_path):
    """With --json there is an object for each interval; while NATS is away it says so, and then goes on as before."""
    await provisioned.flush()
    process = await start_command(tmp_path, "top", "--json", "--interval", "0.2", NATS_URL=nats_server.url)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert 4 == len(await told(process, lambda each: each["trouble"] is None, "lanes"))
            await nats_server.stop()
            assert "for " in await told(process, lambda each: each["trouble"] is not None, "trouble")
            await nats_server.start()
            assert 4 == len(await told(process, lambda each: each["trouble"] is None, "lanes"))
            process.send_signal(signal.SIGINT)
            assert 0 == await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process, condition, key):
    """The value of `key` in the next line that meets the condition."""
    async for line in process.stdout:
        if condition(document := json.loads(line)):
            return document[key]
    raise AssertionError("it ended")


@pytest.mark.usefixtures("provisioned")
async def test_on_a_terminal(nats_server):
    """In a terminal it uses the whole screen, adapts to its size, and restores it at Ctrl-C, with exit code 0."""
    async with on_terminal("top", "--interval", "60", NATS_URL=nats_server.url) as terminal:
        await terminal.shows("\x1b[?1049h")
        await terminal.shows("relay top  nats://")
        await terminal.shows("dead letters 0")
        seen = len(terminal.screen)
        terminal.resize(50, 12)
        await terminal.shows("more lanes", after=seen)
        terminal.process.send_signal(signal.SIGINT)
        await terminal.shows("\x1b[?1049l")
        async with asyncio.timeout(TIMEOUT_S):
            assert 0 == await terminal.process.wait()
