"""Dead letters in a real browser: looking, replaying, purging."""

import asyncio
import json
import re

from console_kit import IN_BROWSER, VIEWPORT
from playwright.async_api import Page, expect
from relay_kit import Scene, new_job

from relay.contract.subjects import DLQ_STREAM, Reason
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.messages import get_message

pytestmark = IN_BROWSER
MANY = 100
"""So many dead letters are not replayed at one a second before the browser can stop it, however slow it is."""


async def dead_letter(stage: Scene, job: str, body: bytes = b"{", headers: dict[str, str] | None = None):
    """Publish what cannot be relayed, and return its dead letter."""
    await stage.settled(await stage.publish_body(job, body, headers))
    (letter,) = await stage.dead_letters(f"job.dlq.{job}")
    return letter


async def unknown_then_known(stage: Scene, job: str, *later: str) -> StoredDeadLetter:
    """A dead letter with the reason job_not_found of a job that the Facilitator knows by now, and its later updates."""
    stage.facilitator.unknown_jobs.add(job)
    await stage.settled(await stage.publish(job, "accepted", dead_letter=None))
    stage.facilitator.unknown_jobs.discard(job)
    await stage.settled(*[await stage.publish(job, status, {}) for status in later])
    (letter,) = await stage.dead_letters(f"job.dlq.{job}")
    return letter


async def test_replay_from_click_to_facilitator(stage, console, page: Page):
    """Select, dry run, replay: the dry run names the job that has gone on, and then the Facilitator has the update."""
    job = new_job()
    letter = await unknown_then_known(stage, job, "executor_ready")
    await page.goto(f"{console.url}dead-letters?job={job}")
    await page.get_by_role("row", name=job).get_by_role("checkbox").click()
    await page.get_by_role("button", name="Replay selected").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_text("1 would be replayed: job_not_found 1")).to_be_visible()
    await expect(dialog.get_by_text("Of jobs that have gone on since: 1")).to_be_visible()
    await expect(dialog.get_by_text("its job has gone on to executor_ready since")).to_be_visible()
    assert ["executor_ready"] == [row.status for row in stage.facilitator.rows_of(job)]
    await dialog.get_by_role("button", name="Replay", exact=True).click()
    await expect(page.get_by_text("Replay done")).to_be_visible()
    await expect(page.get_by_text("replayed 1 of 1")).to_be_visible()
    await stage.facilitator.wait_for(lambda facilitator: len(facilitator.rows_of(job)) == 2)
    assert "accepted" == stage.facilitator.current_status(job)
    assert await get_message(stage.nc, DLQ_STREAM, letter.sequence) is None
    await page.get_by_role("button", name="Show what is left").click()
    await expect(page.get_by_text("No dead letter matches.")).to_be_visible()


async def test_replay_at_a_low_rate_is_stopped(stage, console, page: Page):
    """A replay keeps to its rate, shows how far it is, and ends at the button; the rest stays, to be replayed later."""
    jobs = {new_job() for _ in range(MANY)}
    stage.facilitator.unknown_jobs.update(jobs)
    await stage.settled(*await asyncio.gather(*map(stage.publish, jobs)), timeout_s=60)
    stage.facilitator.unknown_jobs.difference_update(jobs)

    async def replay(rate: str) -> None:
        await page.get_by_role("button", name="Replay all that match").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("At most this many a second").fill(rate)
        await dialog.get_by_role("button", name="Replay", exact=True).click()

    def relayed() -> set[str]:
        return {job for job in jobs if stage.facilitator.rows_of(job)}

    await page.goto(f"{console.url}dead-letters?reason={Reason.JOB_NOT_FOUND}")
    await replay("1")
    await expect(page.get_by_text(re.compile(rf"replayed ([2-9]|\d\d) of {MANY}"))).to_be_visible()
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_text("Replay stopped")).to_be_visible()
    left = {letter.job for letter in await stage.dead_letters() if letter.reason == Reason.JOB_NOT_FOUND}
    assert left
    await stage.facilitator.wait_for(lambda _: relayed() | left == jobs)
    await replay("")
    await expect(page.get_by_text("Replay done")).to_be_visible()
    await stage.facilitator.wait_for(lambda _: relayed() == jobs)
    assert MANY == sum(len(stage.facilitator.rows_of(job)) for job in jobs)


async def test_purge(stage, console, page: Page):
    """Purge asks for the export first and for a typed word then, and removes what was exported, nothing else."""
    letter, other = [await dead_letter(stage, new_job(), b'{"n": 1}') for _ in range(2)]
    await page.goto(f"{console.url}dead-letters/{letter.sequence}")
    await page.get_by_role("button", name="Purge this one").click()
    dialog = page.get_by_role("dialog")
    purge = dialog.get_by_role("button", name="Purge", exact=True)
    await expect(purge).to_be_disabled()
    typed = dialog.get_by_label("Then type")
    await typed.fill("purge 1")
    await expect(purge).to_be_disabled()
    async with page.expect_download() as downloading:
        await dialog.get_by_role("button", name="Export").click()
    download = await downloading.value
    (line,) = (await asyncio.to_thread((await download.path()).read_text)).splitlines()
    assert (letter.sequence, '{"n": 1}') == (json.loads(line)["sequence"], json.loads(line)["body"])
    await expect(dialog.get_by_text("To remove them, type: purge 1")).to_be_visible()
    await typed.fill("purge 2")
    await expect(purge).to_be_disabled()
    await typed.fill("purge 1")
    await purge.click()
    await expect(page.get_by_text("Purge done")).to_be_visible()
    assert await get_message(stage.nc, DLQ_STREAM, letter.sequence) is None
    assert await get_message(stage.nc, DLQ_STREAM, other.sequence) is not None
    await page.reload()
    await expect(page.get_by_role("alert")).to_contain_text("It is not there")


async def test_script_tags(stage, console, page: Page):
    """Whatever an update contains is text: in its body, its headers, its status and its error."""
    script = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>{{ 6 * 7 }}"
    job = new_job()
    body = json.dumps({"uuid": job, "status": script, "metadata": None}).encode()
    letter = await dead_letter(stage, job, body, {"X-Script": script})
    for path, places in ((f"dead-letters?job={job}", 2), (f"dead-letters/{letter.sequence}", 6), (f"jobs/{job}", 1)):
        await page.goto(console.url + path)
        await expect(page.get_by_text("window.broken = 1")).to_have_count(places)
        assert await page.evaluate("window.broken") is None
        assert 0 == await page.get_by_text("42", exact=True).count()
        assert 0 == await page.locator("img[src=x]").count()


async def test_one_letter(stage, console, page: Page):
    """The page of a letter has its error, the advice, its headers, and its body as text and in hexadecimal."""
    letter = await dead_letter(stage, new_job(), b"\xff\x00 no JSON", {"X-Mine": "yes"})
    await page.goto(f"{console.url}dead-letters/{letter.sequence}")
    for text in (letter.error, "fix the producer", "X-Mine", "Relay-Failed-At", "\\xff\\x00 no JSON", "ff 00 20 6e 6f"):
        await expect(page.get_by_text(text).first).to_be_visible()


async def test_filters(stage, console, page: Page):
    """Filters as `relay dlq list` has them, in the address. They count when they are shown; bad ones show nothing."""
    job = new_job()
    letter = await dead_letter(stage, job)
    await page.goto(f"{console.url}dead-letters")
    await page.get_by_label("Job (UUID)").fill(job)
    await page.get_by_label("Since").fill("15m")
    await page.get_by_label("Since").press("Enter")
    await page.wait_for_url(f"**/dead-letters?job={job}&since=15m")
    await expect(page.get_by_role("row", name=job)).to_be_visible()
    await expect(page.get_by_role("link", name=str(letter.sequence), exact=True)).to_be_visible()
    await page.get_by_role("combobox", name="Reason").click()
    await page.get_by_role("option", name=Reason.TOO_LARGE).click()
    await page.get_by_role("button", name="Purge all that match").click()
    await expect(page.get_by_text("The filters were changed.")).to_be_visible()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await page.get_by_role("button", name="Show").click()
    await page.wait_for_url(f"**/dead-letters?job={job}&reason={Reason.TOO_LARGE}&since=15m")
    await expect(page.get_by_text("No dead letter matches.")).to_be_visible()
    for path, said in (
        ("?since=yesterday", "since 'yesterday' is not allowed"),
        ("?reason=<b>", "reason '<b>' is not allowed"),
        ("/first", "'first' is not the number of a dead letter"),
    ):
        await page.goto(f"{console.url}dead-letters{path}")
        await expect(page.get_by_role("alert")).to_contain_text(said)


async def test_narrow_and_by_keyboard(stage, console, page: Page):
    """On 400 pixels nothing is cut off, and everything is reached by the keyboard: here a letter of the list."""
    job = new_job()
    letter = await dead_letter(stage, job)
    await page.set_viewport_size({"width": 400, "height": 800})
    for path in ("", "jobs", f"jobs/{job}", f"dead-letters/{letter.sequence}", f"dead-letters?job={job}"):
        await page.goto(console.url + path)
        await expect(page.get_by_role("status")).to_contain_text("pdates")
        assert 400 >= await page.evaluate("document.documentElement.scrollWidth"), path
    await page.set_viewport_size(VIEWPORT)
    link = page.get_by_role("link", name=str(letter.sequence), exact=True)
    await expect(link).to_be_visible()
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await link.evaluate("each => each === document.activeElement"):
            break
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Replay this one")).to_be_visible()
