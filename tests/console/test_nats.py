"""NATS and the console: away and back, an observer's user, many tabs, a great many dead letters."""

import os
from pathlib import Path

import pytest
from console_kit import IN_BROWSER, console_process, tab
from guarded_nats import guarded_server, settings, variables
from playwright.async_api import expect
from tcp_proxy import TcpProxy

from relay.console.actions import Actions, DryRun
from relay.console.rights import Rights, find_rights
from relay.console.watching import Watching
from relay.contract.errors import NotPermitted
from relay.contract.settings import Settings
from relay.contract.subjects import (
    REASON_HEADER,
    REPORT_SUBJECT,
    SOURCE_SUBJECT_HEADER,
    Reason,
    dlq_subject,
)
from relay.dead_letters import stream
from relay.dead_letters.purge import PurgePlan
from relay.dead_letters.selection import Selection
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.frames import publication
from relay.nats.jetstream import publish_confirmed
from relay.topology.provision import provision, topology_of

pytestmark = IN_BROWSER
JOB = "00000000-0000-4000-8000-00000000000a"
LETTERS = int(os.environ.get("LETTERS", "20000"))
"""How many there are in the test of many; `make soak` has a million."""
SHOWN = "getElement(document.querySelector('.chart').id.slice(1)).chart.getOption().series[0].data.map(each => each[0])"
"""The times of the views that the charts show."""
MORE_MIB = 64
"""So much more memory than before they may cost."""
PADDING = b" " * (2 * MORE_MIB * 2**20 // LETTERS)
"""Of each body: together they are twice as large, so that a console that holds them is seen."""


def headers(reason: Reason) -> dict[str, str]:
    return {REASON_HEADER: reason.value, SOURCE_SUBJECT_HEADER: f"job.status.{JOB}"}


async def test_away_and_back(stage, browser, tmp_path):
    """It starts without NATS, and says so; it comes to life with NATS, says when NATS is away, and comes back."""
    proxy = TcpProxy(stage.server.port)
    async with proxy.serving():
        pass  # now it has its port
    async with console_process(tmp_path, NATS_URL=proxy.url) as console, tab(browser) as page:
        headline = page.locator(".banner .headline")
        await page.goto(console.url)
        await expect(headline).to_have_text("No news from NATS")
        async with proxy.serving():
            await expect(headline).to_contain_text("Updates flow")
        await expect(headline).to_have_text("No news from NATS")
        await expect(page.locator(".banner .reason")).to_contain_text("for ")
        await expect(page.locator(".finding")).to_have_count(1)
        await expect(page.locator(".finding")).to_contain_text("state: not known for ")
        await expect(page.locator("td .level").first).to_contain_text("outdated")
        await expect(page.locator(".level.ok")).to_have_count(0)
        await page.goto(f"{console.url}dead-letters")
        await expect(page.get_by_role("alert")).to_contain_text("not connected")
        async with proxy.serving():
            await expect(page.get_by_role("alert")).to_have_count(0)
            await page.goto(console.url)
            await expect(headline).to_contain_text("Updates flow")


async def test_many_tabs_cost_nothing(stage, console, browser, page):
    """However many pages are open, NATS and the workers are asked once for each view that they show."""
    async with tab(browser) as other:
        for each in (page, other):
            await each.goto(console.url)
            await expect(each.locator(".banner .headline")).to_contain_text("Updates flow")
        last = await page.evaluate(f"{SHOWN}.at(-1)")
        asked = await stage.nc.subscribe(REPORT_SUBJECT)
        await page.wait_for_function(f"last => {SHOWN}.filter(at => at > last).length >= 4", arg=last)
        polls = asked.pending_msgs
        shown = await page.evaluate(f"last => {SHOWN}.filter(at => at > last).length", last)
    # The latest polls may not be shown yet. Were there polls of each page, there would be twice as many.
    assert 0 < polls <= shown + 2
    await asked.unsubscribe()


@pytest.mark.usefixtures("users_have_passwords")
async def test_observer(browser, tmp_path):
    """With the observer's user everything is shown and nothing offered; and the server refuses, whatever is tried."""
    async with guarded_server() as server:
        anybody = await connect(settings(server, "anybody"), name="test")
        await provision(anybody, topology_of(Settings().delivery))
        letter = await publish_confirmed(anybody, dlq_subject(JOB), b'{"status": "failed"}', headers(Reason.REFUSED))
        async with (
            console_process(tmp_path, NATS_URL=server.url, **variables("observer")) as console,
            tab(browser) as page,
        ):
            await page.goto(f"{console.url}dead-letters?job={JOB}&reason=refused")
            await expect(page.get_by_role("row", name=JOB)).to_contain_text("failed")
            await expect(page.get_by_text("may look at dead letters, and not act on them")).to_be_visible()
            await expect(page.get_by_role("button", name="Replay")).to_have_count(0)
            await expect(page.get_by_role("button", name="Purge")).to_have_count(0)
            await page.goto(f"{console.url}dead-letters/{letter.sequence}")
            await expect(page.get_by_text("All headers")).to_be_visible()
            await expect(page.get_by_role("button", name="Replay")).to_have_count(0)
            await expect(page.get_by_role("button", name="Purge")).to_have_count(0)
        observer = await connect(settings(server, "observer"), name="test")
        try:
            watching = Watching(Settings(nats=settings(server, "observer")))
            await refuses(watching, observer, letter.sequence)
            other = await publish_confirmed(anybody, dlq_subject(JOB), b"{}", headers(Reason.REFUSED))
            await exports_at_a_time(Actions(watching), (letter.sequence, other.sequence))
            operator = await connect(settings(server, "operator"), name="test")
            assert (await find_rights(operator)).act
            await close(operator)
        finally:
            await close(observer)
            await close(anybody)


async def refuses(watching: Watching, observer, sequence: int) -> None:
    """The console refuses by itself; and if it did not, NATS would."""
    watching.client, watching.rights = observer, await find_rights(observer)
    assert (False, False) == (watching.rights.act, watching.rights.scan)
    selected = Selection(sequences=(sequence,))
    dry_run = DryRun(selected, PurgePlan(last_sequence=sequence, made_at=(await stream.info(observer))["created"]))
    dry_run.plan.reasons["refused"] = 1
    actions = Actions(watching)
    with pytest.raises(NotPermitted):
        actions.replay(dry_run, None)
    with pytest.raises(NotPermitted):
        actions.prepare_export(selected)
    watching.rights = Rights(act=True)
    actions.replay(dry_run, None)
    await actions.ended()
    assert (0, True) == (actions.latest.summary.replayed, bool(actions.latest.error))
    export = actions.export_named(actions.prepare_export(selected))
    assert 1 == len([line async for line in actions.export(export)])
    actions.purge(export)
    await actions.ended()
    assert (0, True) == (actions.latest.removed, bool(actions.latest.error))
    actions.stop()
    assert not actions.latest.stopped  # it had ended


async def exports_at_a_time(actions: Actions, sequences: tuple[int, int]) -> None:
    """What may be purged is what a complete file has, also while a second file is written."""
    export = actions.export_named(actions.prepare_export(Selection(sequences=sequences)))
    first, second = actions.export(export), actions.export(export)
    await anext(first)
    await anext(second)
    assert not export.complete
    assert 1 == len([line async for line in first])
    assert (True, 2) == (export.complete, export.plan.reasons.total())
    await second.aclose()


def memory_mib(pid: int) -> float:
    """The largest memory that the process has had."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


async def test_a_great_many_letters(browser, tmp_path):
    """A list of very many dead letters opens at once, is paged, finds the one that differs, and needs little memory."""
    async with NatsServer() as server:
        client = await connect(Settings().nats.model_copy(update={"urls": (server.url,)}), name="test")
        await provision(client, topology_of(Settings().delivery))
        first = await publish_confirmed(client, dlq_subject(JOB), b"{}", headers(Reason.TOO_LARGE))
        async with console_process(tmp_path, NATS_URL=server.url) as console, tab(browser) as page:
            await page.goto(f"{console.url}dead-letters")
            await expect(page.get_by_role("link", name=str(first.sequence), exact=True)).to_be_visible()
            before_mib = memory_mib(console.process.pid)
            await fill(client, LETTERS - 1)
            await close(client)
            await page.goto(f"{console.url}dead-letters")
            await expect(page.get_by_role("link", name=str(LETTERS), exact=True)).to_be_visible()
            await expect(page.get_by_text(f"{LETTERS:,} in all; the chart shows the newest 10,000.")).to_be_visible()
            assert 50 == await page.locator(".q-table tbody tr").count()
            await page.get_by_role("link", name="Older").click()
            await expect(page.get_by_role("link", name=str(LETTERS - 50), exact=True)).to_be_visible()
            await page.goto(f"{console.url}dead-letters?reason={Reason.TOO_LARGE}")
            found = page.get_by_role("link", name=str(first.sequence), exact=True)
            older = page.get_by_role("link", name="Older")
            await expect(found.or_(older).first).to_be_visible()
            while not await found.is_visible():
                await expect(page.get_by_text("No dead letter matches.")).to_have_count(0)
                await older.click()
                await page.wait_for_load_state()
                await expect(found.or_(older).first).to_be_visible()
            await page.goto(f"{console.url}dead-letters")
            await page.get_by_role("button", name="Replay all that match").click()
            await expect(page.get_by_text(f"{LETTERS:,} would be replayed")).to_be_visible()
            assert memory_mib(console.process.pid) < before_mib + MORE_MIB


async def fill(client, count: int) -> None:
    """Store so many dead letters, without waiting for each PubAck."""
    subject, body, refused = dlq_subject(JOB), b'{"status": "failed"}' + PADDING, headers(Reason.REFUSED)
    line = publication(subject.encode(), body, headers=refused)
    while count:
        part = min(500, count)
        client.write(line * (part - 1))
        # The answer to this one tells that the server has stored those before, so that none are dropped.
        await publish_confirmed(client, subject, body, refused, timeout_s=30)
        count -= part
