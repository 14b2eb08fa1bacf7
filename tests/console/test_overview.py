"""The overview in a real browser."""

from console_kit import IN_BROWSER
from playwright.async_api import expect
from relay_kit import new_job

CHARTS = "[...document.querySelectorAll('.chart svg')].map(chart => chart.innerHTML)"

pytestmark = IN_BROWSER


async def test_moves_by_itself(stage, console, page):
    """The page shows what flows, without being loaded again: figures, charts, lanes, workers, findings."""
    await page.goto(console.url)
    await expect(page.locator(".banner .headline")).to_contain_text("Updates flow")
    await expect(page.get_by_text("lanes: 4 lanes, each driven")).to_be_visible()
    await expect(page.get_by_role("cell", name="signed in")).to_be_visible()
    letters = page.locator(".figure", has_text="dead letters").locator(".value")
    before = int(await letters.inner_text())
    drawn = await page.evaluate(CHARTS)
    bad = await stage.publish_body(new_job(), b"{")
    good = [await stage.publish(new_job()) for _ in range(3)]
    await stage.settled(bad, *good)
    await expect(letters).to_have_text(str(before + 1))
    await page.wait_for_function(f"before => !({CHARTS}).some((chart, i) => chart === before[i])", arg=drawn)


async def test_says_what_is_wrong_in_shape_word_and_colour(stage, console, page):
    """While no lane moves, the first line is red, has another shape and says so; afterwards it is not."""
    await page.goto(console.url)
    await expect(page.locator(".banner .q-icon")).not_to_have_text("dangerous")
    await stage.facilitator.away(1012)
    try:
        await expect(page.locator(".banner .headline")).to_have_text("Updates do not flow")
        await expect(page.locator(".banner .q-icon")).to_have_text("dangerous")
        await expect(page.locator(".banner.fail")).to_be_visible()
    finally:
        await stage.facilitator.back()
    await expect(page.locator(".banner .headline")).to_contain_text("Updates flow")
