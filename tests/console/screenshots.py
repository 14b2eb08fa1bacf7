"""Takes the pictures of docs/console.md: `make screenshots`. Look at them afterwards."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from random import Random

import pytest
from console_kit import tab
from pages import ROOT
from PIL import Image
from playwright.async_api import Page, expect
from relay_kit import STATUSES, new_job, update

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
FOLDER = ROOT / "docs" / "console"
FREQUENT, RARE = 32, 64
"""How many colours of each kind a picture keeps; with them it has a third of the bytes."""
TRAFFIC_S = 75
"""How long updates flow before the pictures, so that the charts show something."""


async def save(page: Page, name: str) -> None:
    await page.wait_for_timeout(1500)  # for fonts, and the end of the library's animations
    shot = Image.open(io.BytesIO(await page.screenshot()))
    few = with_few_colours(shot.convert("RGB"))
    few.save(FOLDER / f"{name}.png", optimize=True)


def with_few_colours(shot: Image.Image) -> Image.Image:
    """The frequent colours as they are, so that no background changes, and rare ones, such as a yellow warning."""
    by_count = sorted(shot.getcolors(shot.width * shot.height), reverse=True)
    rare = shot.quantize(RARE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in by_count[:FREQUENT] for part in colour] + rare[: 3 * RARE])
    return shot.quantize(palette=palette, dither=Image.Dither.NONE)


@contextlib.asynccontextmanager
async def traffic(stage) -> AsyncIterator[list[str]]:
    """Jobs come and go; some updates are bad. Gives the jobs whose lives are published."""
    rng, jobs = Random(1), list[str]()

    async def live() -> None:
        while True:
            job = new_job()
            bad = rng.random() < 0.04
            for status in STATUSES:
                if bad and status == "volumes_ready":
                    await stage.publish_body(job, rng.choice([b"{", update(job, "teleported"), update(new_job())]))
                await stage.publish(job, status, {})
                await asyncio.sleep(rng.expovariate(8))
            jobs.append(job)

    lives = [asyncio.create_task(live()) for _ in range(12)]
    try:
        yield jobs
    finally:
        for each in lives:
            each.cancel()


async def test_pictures(stage, console, browser):
    """Each page, dark and light, wide and narrow."""
    FOLDER.mkdir(exist_ok=True)
    unknown = new_job()
    stage.facilitator.unknown_jobs.add(unknown)
    await stage.settled(await stage.publish(unknown, "accepted"))
    stage.facilitator.unknown_jobs.discard(unknown)
    await stage.settled(*await stage.publish_life(unknown, ("executor_ready", "volumes_ready")))
    (letter,) = await stage.dead_letters(f"job.dlq.{unknown}")
    async with traffic(stage), tab(browser, color_scheme="light") as light, tab(browser, color_scheme="dark") as dark:
        await light.goto(f"{console.url}jobs")
        await asyncio.sleep(TRAFFIC_S)
        await save(light, "jobs")
        await dark.goto(console.url)
        await save(dark, "overview-dark")
        await light.goto(console.url)
        await save(light, "overview")
        async with tab(browser, viewport={"width": 400, "height": 800}) as narrow:
            await narrow.goto(console.url)
            await save(narrow, "narrow")
        await light.goto(f"{console.url}jobs/{unknown}")
        await expect(light.locator(".timeline > li")).to_have_count(3)
        await save(light, "job")
        await light.goto(f"{console.url}dead-letters")
        await save(light, "dead-letters")
        await dark.goto(f"{console.url}dead-letters/{letter.sequence}")
        await dark.get_by_role("button", name="Replay this one").click()
        await expect(dark.get_by_text("1 would be replayed")).to_be_visible()
        await save(dark, "replay")
        await stage.facilitator.away(1012)
        await dark.goto(console.url)
        await expect(dark.locator(".banner .headline")).to_have_text("Updates do not flow")
        await save(dark, "broken")
        await stage.facilitator.back()
