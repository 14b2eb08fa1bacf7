"""`relay top`: views of a fixed size, and the command itself on a terminal and off it."""

import asyncio
import datetime as dt
import io
import json
import signal
import sys
import time
from dataclasses import replace

import pytest
from cli_kit import TIMEOUT_S, environment, make_command, on_terminal
from relay_kit import Scene, new_job
from rich.console import Console

from relay.cli.top_display import View, document, screen
from relay.contract.report import ConnectionReport, LaneReport, Report
from relay.contract.subjects import DLQ_STREAM, REASON_HEADER, Reason, api_stream_purge, dlq_subject
from relay.dead_letters.reasons import ReasonCounter, ReasonCounts
from relay.local.facilitator import FacilitatorSimulator
from relay.overview import observer as overview
from relay.overview.observer import Observer, gather_reports
from relay.overview.snapshot import Interval, LaneState, Overview, Quantiles, StreamState

WORKER = "host-1-abcdef"
LANES = [LaneReport(lane, at_hand=1, out=1, held=False, oldest_at_hand_s=0.1, trouble=None) for lane in range(4)]
REPORT = Report(WORKER, "1", 300.0, [], LANES, [ConnectionReport(32, 3, None)], {}, {}, 0, {})
SEEN = Overview(
    taken_s=0.0,
    server_ahead_s=0.0,
    clock_error_s=0.0,
    lanes=tuple(LaneState(lane, WORKER, waiting=lane, delivered=1, oldest_s=0.25) for lane in range(4)),
    streams={"JOB_STATUS": StreamState("JOB_STATUS", 10, 4096, 10, -1, -1, 604_800, copies=1)},
    workers=frozenset({WORKER}),
    reports={WORKER: REPORT},
    asked=True,
    letters=ReasonCounts(3, 3, {"refused": 2, "invalid_json": 1}),
    advisories=0,
    published=10,
)
PASSED = Interval(
    seconds=2.0,
    published=200.5,
    settled={"acknowledged": 199.0, "duplicate": 1.0, "dead_lettered": 0.5},
    retries=0.0,
    deliveries={0: 50.0, 1: 50.0, 2: 50.0, 3: 50.5},
    settled_by={WORKER: 200.5},
    latencies={"hot_path": Quantiles(400, 0.00021, 0.0018), "end_to_end": Quantiles(400, 0.012, float("inf"))},
)
VIEW = View("nats://127.0.0.1:4222", dt.datetime(2026, 11, 22, 3, 14, tzinfo=dt.UTC), 2.0, SEEN, PASSED, None)


def drawn(view: View, width: int = 80, height: int = 24) -> list[str]:
    """The view as lines of text."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(screen(view, height))
    return console.file.getvalue().rstrip("\n").split("\n")


def cells(lines: list[str], first: str) -> list[str]:
    """The words of the line that begins with `first`."""
    return next(line.split() for line in lines if line.split()[:1] == [first])


def test_view():
    """Rates, latencies, lanes with owners and lag, workers with the Facilitator's state, dead letters: all is there."""
    lines = drawn(VIEW)
    assert lines[0] == "relay top  nats://127.0.0.1:4222  2026-11-22 03:14:00 UTC  every 2 s"
    assert "200.5 199.0 1.0 0.5 0.0 3/32" == " ".join(lines[2].split())
    assert ["p50", "0.21", "12.00", "-"] == cells(lines, "p50")
    assert ["p99", "1.80", ">", "60", "s", "-"] == cells(lines, "p99")
    assert ["3", WORKER, "3", "1", "50.5", "0.2", "s"] == cells(lines, "3")
    assert [WORKER, "0,1,2,3", "5", "min", "200.5", "3/32", "signed", "in"] == cells(lines, WORKER)
    assert lines[-1] == "dead letters 3: refused 2, invalid_json 1"


def many(lanes: int, workers: int) -> View:
    reports = {f"{WORKER}{number}": replace_report(f"{WORKER}{number}") for number in range(workers)}
    states = tuple(LaneState(lane, WORKER, oldest_s=float(lane)) for lane in range(lanes))
    return replace(VIEW, seen=replace(SEEN, lanes=states, reports=reports, workers=frozenset(reports)))


def replace_report(worker: str) -> Report:
    return Report(worker, "1", 1.0, [], [], [ConnectionReport(32, 0, "x" * 300)], {}, {}, 0, {})


@pytest.mark.parametrize("trouble", [None, "NATS is away " * 30])
@pytest.mark.parametrize("view", [VIEW, many(256, 64), many(1, 64), many(4, 0)])
@pytest.mark.parametrize(("width", "height"), [(60, 16), (80, 24), (200, 18)])
def test_view_fits(view, width, height, trouble):
    """However much there is to show, heading, lanes, workers and dead letters fit into the terminal."""
    lines = drawn(replace(view, trouble=trouble), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    for begin in ("relay top", "lane", "worker", "dead letters"):
        assert [begin] == [line[: len(begin)] for line in lines if line.startswith(begin + " ")]


def test_the_oldest_lanes_are_shown():
    """Of more lanes than fit those are shown that have waited longest, and how many others there are."""
    lines = drawn(many(256, 1))
    shown = [int(line.split()[0]) for line in lines if line.split()[1:2] == [WORKER]]
    assert list(range(256 - len(shown), 256)) == shown
    assert any(f"and {256 - len(shown)} more lanes" in line for line in lines)


def test_view_without_rates():
    """Before there is a second look rates are unknown, not zero; what is known is shown."""
    lines = drawn(replace(VIEW, passed=None))
    assert "- - - - - 3/32" == " ".join(lines[2].split())


def test_trouble_is_shown():
    """With NATS away that is said above what was seen last; with nothing seen it is all there is."""
    away = replace(VIEW, trouble="for 5 s now: no NATS connection", passed=None)
    assert "No news for 5 s now: no NATS connection" == drawn(away)[1]
    assert "dead letters 3: refused 2, invalid_json 1" == drawn(away)[-1]
    assert 2 == len(drawn(replace(away, seen=None)))


def test_what_is_shown_steers_no_terminal():
    """Neither control characters nor markup in names that others chose get through."""
    evil = "\x1b]0;pwned\x07[red]x[/red]"
    seen = replace(SEEN, lanes=(LaneState(0, evil),), letters=ReasonCounts(1, 1, {evil: 1}))
    text = "\n".join(drawn(replace(VIEW, seen=seen), 200))
    assert "" == "".join(char for char in text if not char.isprintable() and char != "\n")
    assert 2 == text.count("[red]x[/red]")


def test_document():
    """As JSON there is the same, with what is infinite as null."""
    told = json.loads(json.dumps(document(VIEW)))
    assert (None, 200.5, 2.0) == tuple(told[name] for name in ("trouble", "published_per_s", "interval_s"))
    assert {"count": 400, "p50_s": 0.012, "p99_s": None} == told["latencies"]["end_to_end"]
    assert (None, [0, 1, 2, 3]) == (told["latencies"]["round_trip"], told["workers"][0]["lanes"])
    assert {"total": 3, "counted": 3, "reasons": {"refused": 2, "invalid_json": 1}} == told["dead_letters"]
    assert "away" == document(replace(VIEW, trouble="away"))["trouble"]


# Over NATS.


async def test_look(nats_server):
    """A look over NATS alone sees lanes with their owner, their lag and its age, dead letters, and the reports."""
    async with FacilitatorSimulator() as simulator, Scene(nats_server, simulator) as scene:
        async with scene.relay():
            await scene.settled(await scene.publish(new_job(2)))
            settled_s = time.monotonic()
        await scene.publish(new_job(2))
        scene.takings.clear()
        async with scene.relay(FACILITATOR_URL="ws://127.0.0.1:1/ws/v0/"):
            await scene.owned(lambda: len(scene.owners) == 4)
            seen = await Observer(scene.nc).look()
        owner = scene.takings[0].worker
    assert [(lane, owner) for lane in range(4)] == [(lane.lane, lane.owner) for lane in seen.lanes]
    assert [0, 0, 1, 0] == [lane.unsettled for lane in seen.lanes]
    assert [None, None, None] == [seen.lanes[lane].oldest_s for lane in (0, 1, 3)]
    assert 0 < seen.lanes[2].oldest_s < seen.taken_s - settled_s, "it is that of the second update"
    assert ({owner}, {owner}) == (set(seen.workers), set(seen.reports))
    assert (2, 0, ReasonCounts()) == (seen.published, seen.advisories, seen.letters)
    assert abs(seen.server_ahead_s) < 1


async def test_no_worker_answers(provisioned, monkeypatch):
    """Where nobody listens for questions nobody is waited for."""
    monkeypatch.setattr(overview, "_REPORT_TIMEOUT_S", 60)
    async with asyncio.timeout(TIMEOUT_S):
        assert {} == await gather_reports(provisioned, expected=3)


async def test_reasons_are_counted_once(provisioned):
    """Dead letters that were counted are not read again, unless some were removed meanwhile."""
    count = ReasonCounter(provisioned)
    jetstream = provisioned.jetstream()

    async def bury(reason: str) -> None:
        await jetstream.publish(dlq_subject("x"), b"body", headers={REASON_HEADER: reason})

    assert ReasonCounts() == await count.count()
    for reason in (Reason.REFUSED, Reason.TOO_LARGE, Reason.REFUSED):
        await bury(reason)
    assert ReasonCounts(3, 3, {"refused": 2, "too_large": 1}) == await count.count()
    await bury("refused")
    assert ReasonCounts(4, 4, {"refused": 3, "too_large": 1}) == await count.count()
    await jetstream.delete_msg(DLQ_STREAM, 2)
    await bury("refused")
    assert ReasonCounts(4, 4, {"refused": 4}) == await count.count()
    await provisioned.request(api_stream_purge(DLQ_STREAM), b"")
    assert ReasonCounts() == await count.count()
    assert [] == await jetstream.consumers_info(DLQ_STREAM)


async def test_letters_that_come_while_counting(provisioned, monkeypatch):
    """A dead letter that is written between two steps of a look is counted once, at the next look."""
    count = ReasonCounter(provisioned)
    jetstream = provisioned.jetstream()
    await jetstream.publish(dlq_subject("x"), b"", headers={REASON_HEADER: Reason.REFUSED})
    extent = count._extent

    async def extent_and_one_more():
        found = await extent()
        await jetstream.publish(dlq_subject("x"), b"", headers={REASON_HEADER: Reason.TOO_LARGE})
        return found

    monkeypatch.setattr(count, "_extent", extent_and_one_more)
    assert ReasonCounts(1, 1, {"refused": 1}) == await count.count()
    monkeypatch.setattr(count, "_extent", extent)
    assert ReasonCounts(2, 2, {"refused": 1, "too_large": 1}) == await count.count()


# The command.


async def test_json_through_an_outage(nats_server, provisioned):
    """With --json there is an object per interval; while NATS is away it says so, and then goes on as before."""
    await provisioned.flush()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "top", "--json", "--interval", "0.2"),
        env=environment(NATS_URL=nats_server.url),
        stdout=asyncio.subprocess.PIPE,
    )
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
    """From the next line that meets the condition."""
    async for line in process.stdout:
        if condition(document := json.loads(line)):
            return document[key]
    raise AssertionError("it ended")


@pytest.mark.usefixtures("provisioned")
async def test_on_a_terminal(nats_server):
    """On a terminal it takes the screen, fits it when its size changes, and gives it back at Ctrl-C, exit 0."""
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


async def test_nats_away_at_the_start(monkeypatch, tmp_path):
    """Without NATS at the start there is one line that names where it was looked for, exit 1."""
    ended = await make_command(monkeypatch, tmp_path)("top", "--once", NATS_URL="nats://127.0.0.1:1")
    assert (1, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert ended.err.startswith("relay: no NATS connection to nats://127.0.0.1:1: ")
