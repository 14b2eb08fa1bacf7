"""`relay console` as a process, and a real browser that looks at it."""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize, async_playwright

TIMEOUT_S = 90
"""For whatever a test waits for: with a load of 14 on two cores, some tests took over a minute in all."""
IN_BROWSER = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),  # with that load the longest, that of many dead letters, took 176 s
]
"""The marks of tests that share one browser, one relay and one console."""
VIEWPORT: ViewportSize = {"width": 1280, "height": 900}
CHROMIUM = "chromium"
"""Debian's: `apt-get install chromium`, or `make browser`."""


@dataclass
class Console:
    """A running console."""

    process: asyncio.subprocess.Process
    url: str
    """Its address, with the slash at the end."""


@contextlib.asynccontextmanager
async def console_process(folder: Path, **settings: str) -> AsyncIterator[Console]:
    """`relay console` with these settings, on a free port; ended by SIGTERM. It must leave no file in `folder`."""
    environment = {"CONSOLE_PORT": "0"} | settings
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "console"),
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | {f"RELAY_{name}": value for name, value in environment.items()},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            line = (await process.stdout.readline()).decode()
        yield Console(process, line.removeprefix("relay console: ").strip())
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
    assert process.returncode == 0
    assert [] == os.listdir(folder)  # noqa: PTH208 - in a coroutine


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium, without a screen."""
    if (path := shutil.which(CHROMIUM)) is None:
        pytest.skip("there is no chromium on the PATH: `make browser` as root, or apt-get install chromium")
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        await new_context(browser)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Tab:
    """A page of the browser, and what went wrong in it."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def check(self, *allowed: str) -> None:
        """Its scripts must have reported no error, such as a breach of the Content-Security-Policy, since last time.

        `allowed`: parts of the errors that the test makes by itself.
        """
        errors, self.errors = self.errors, []
        assert [] == [each for each in errors if not any(part in each for part in allowed)]


@contextlib.asynccontextmanager
async def tab(browser: Browser, *, allowed: tuple[str, ...] = (), **options: Any) -> AsyncIterator[Page]:
    """A page that is closed at the end and must have reported no errors but those `allowed`."""
    async with opened_tab(browser, **options) as opened:
        yield opened.page
        opened.check(*allowed)


@contextlib.asynccontextmanager
async def opened_tab(browser: Browser, **options: Any) -> AsyncIterator[Tab]:
    # One context keeps the library's files for all; options need one of their own.
    context = browser.contexts[0] if browser.contexts and not options else await new_context(browser, **options)
    try:
        opened = Tab(await context.new_page())
        opened.page.on("console", opened.hear)
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        yield opened
    finally:
        await (context.close() if options else opened.page.close())


async def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """As a browser that was just installed."""
    context = await browser.new_context(**({"viewport": VIEWPORT} | options))
    context.set_default_timeout(TIMEOUT_S * 1000)
    return context
