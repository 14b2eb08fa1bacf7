"""Jobs in a real browser: one job's timeline, and the updates of all jobs as they come."""

from console_kit import IN_BROWSER, tab
from playwright.async_api import Page, expect
from relay_kit import new_job, update

pytestmark = IN_BROWSER


async def test_timeline(stage, console, page: Page):
    """A job's updates in their order, how long each took, its body folded, its dead letters in place; it goes on."""
    job = new_job()
    await page.goto(f"{console.url}jobs")
    await stage.settled(await stage.publish(job, "received", {"note": "first"}))
    await stage.settled(await stage.publish_body(job, b"{", {"X": "y"}))
    (letter,) = await stage.dead_letters(f"job.dlq.{job}")
    await page.get_by_label("UUID", exact=True).fill(job.upper())
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/jobs/{job}")
    items = page.locator(".timeline > li")
    await expect(items).to_have_count(2)
    await expect(items.nth(0)).to_contain_text("received")
    await expect(items.nth(0)).to_contain_text("acknowledged")
    await expect(items.nth(0)).to_contain_text(", after ")
    await expect(items.nth(1)).to_contain_text("dead-lettered")
    await expect(items.nth(1)).to_contain_text(", after ")
    link = items.nth(1).get_by_role("link", name=f"invalid_json: dead letter {letter.sequence}")
    await expect(link).to_be_visible()
    await expect(page.get_by_text('"note": "first"')).to_be_hidden()
    await items.nth(0).get_by_role("button", name="Body").click()
    await expect(page.get_by_text('"note": "first"')).to_be_visible()
    await stage.settled(await stage.publish(job, "completed", {}))
    await expect(items).to_have_count(3)
    await expect(items.nth(2)).to_contain_text("completed, with which the job ends")
    await expect(items.nth(2)).to_contain_text("acknowledged")


async def test_unknown_job(stage, console, page: Page):
    """A job without updates is told as such, until it has one; what is no UUID is told, too."""
    job = new_job()
    await page.goto(f"{console.url}jobs/{job}")
    await expect(page.get_by_role("alert")).to_contain_text("no update of job")
    await stage.settled(await stage.publish(job))
    await expect(page.locator(".timeline > li")).to_have_count(1)
    await expect(page.get_by_role("alert")).to_have_count(0)
    await page.goto(f"{console.url}jobs/nonsense")
    await expect(page.get_by_role("alert")).to_contain_text("'nonsense' is not a UUID with hyphens.")


async def test_live_tail(stage, console, browser, page: Page):
    """Updates show as they come, filtered; one key pauses them, and the same key goes on with what is new."""
    job, other = new_job(), new_job()
    await page.goto(f"{console.url}jobs")
    rows = page.locator(".tail tbody tr")
    await expect(page.get_by_text("Nothing has come yet.")).to_be_visible()

    async def publish_both() -> None:
        for each in (other, job):
            await stage.settled(await stage.publish(each))

    await stage.settled(await stage.publish(other, "received"))
    await expect(rows).to_have_count(2)
    await page.get_by_label("Job (UUID)").fill(job)
    await page.get_by_label("Job (UUID)").blur()
    await expect(rows).to_have_count(0)
    await publish_both()
    await expect(rows).to_have_count(2)
    for what in ("published", "acknowledged"):  # a receipt may be heard first: it comes over another connection
        await expect(rows.filter(has_text=what)).to_have_count(1)
    await page.keyboard.press("p")
    await expect(page.get_by_role("switch", name="Paused")).to_be_checked()
    async with tab(browser) as other_page:  # it shows that the console has heard of them
        await other_page.goto(f"{console.url}jobs")
        await expect(other_page.get_by_text("Nothing has come yet.")).to_be_visible()
        await publish_both()
        await expect(other_page.locator(".tail tbody tr")).to_have_count(4)
    await expect(rows).to_have_count(2)
    await page.keyboard.press("p")
    await expect(rows).to_have_count(4)
    await page.get_by_role("combobox", name="Status").click()
    await page.get_by_role("option", name="failed", exact=True).click()
    await expect(rows).to_have_count(0)
    await publish_both()
    await stage.settled(await stage.publish(job, "failed"))
    await expect(rows).to_have_count(2)
    await expect(rows.filter(has_text="failed")).to_have_count(2)
    await page.get_by_role("checkbox", name="Dead letters only").click()
    await expect(rows).to_have_count(0)
    await stage.settled(await stage.publish_body(job, b"{"), await stage.publish_body(job, update(job, "failed", 7)))
    await expect(rows).to_have_count(1)
    await expect(rows.nth(0)).to_contain_text("dead-lettered")
    await expect(rows.nth(0)).to_contain_text("invalid_schema")
