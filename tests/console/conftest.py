"""One browser, one relay and one console for all tests of the pages: they run in one event loop, in one worker."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cli_kit import make_command
from console_kit import TIMEOUT_S, VIEWPORT, Console, Tab, chromium, console_process, opened_tab
from playwright.async_api import Browser, Page, expect
from relay_kit import Scene, serving

from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer

expect.set_options(timeout=TIMEOUT_S * 1000)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage() -> AsyncIterator[Scene]:
    """A relay at work between a real nats-server and the simulated Facilitator, with receipts."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, RECEIPTS="true", MAX_ATTEMPTS="1") as scene,
        serving(scene),
    ):
        yield scene


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def console(stage: Scene, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Console]:
    """The console of `stage`."""
    folder: Path = tmp_path_factory.mktemp("console")
    async with console_process(folder, NATS_URL=stage.server.url) as console:
        yield console


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`await relay("console", CONSOLE_HOST=...)`: runs a command in this process, see cli_kit.py."""
    return make_command(monkeypatch, tmp_path)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_tab(browser: Browser) -> AsyncIterator[Tab]:
    """A new tab is a new process, which compiles the library again: that takes a second of processor time."""
    async with opened_tab(browser) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def page(shared_tab: Tab) -> AsyncIterator[Page]:
    """A page for tests that open something on `console`; it may still show what the test before has opened."""
    await shared_tab.page.set_viewport_size(VIEWPORT)
    yield shared_tab.page
    shared_tab.check()
