"""Who is let in: the real server, asked as browsers and others ask; and a real browser at the password."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from console_kit import IN_BROWSER, Console, console_process, tab
from http_proxy import reverse_proxy
from playwright.async_api import expect

from relay.console.sessions import TRIES

pytestmark = IN_BROWSER
PASSWORD = "correct horse battery"
PROXY = "127.0.0.9"
"""The address of the trusted proxy."""
SOCKET = "_nicegui_ws/socket.io/?EIO=4&transport=websocket"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(stage, tmp_path_factory) -> AsyncIterator[Console]:
    """A console behind a path that asks for a password, or trusts a proxy."""
    settings = {"CONSOLE_PASSWORD": PASSWORD, "CONSOLE_HOST": "0.0.0.0", "CONSOLE_PATH_PREFIX": "/relay"}
    proxy = {"CONSOLE_USER_HEADER": "X-User", "CONSOLE_PROXIES": PROXY}
    async with console_process(
        tmp_path_factory.mktemp("guarded"), NATS_URL=stage.server.url, **settings, **proxy
    ) as console:
        console.url = console.url.replace("0.0.0.0", "127.0.0.1")
        yield console


@pytest_asyncio.fixture(loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def status(http: aiohttp.ClientSession, url: str, method: str = "GET", **headers: str) -> int:
    """The status of the answer to a request with these headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.request(method, url, headers=named, allow_redirects=False) as answer:
        return answer.status


async def socket_is_let_in(http: aiohttp.ClientSession, url: str, **headers: str) -> bool:
    try:
        async with http.ws_connect(url + SOCKET, headers=headers):
            return True
    except aiohttp.WSServerHandshakeError:
        return False


async def test_other_names_and_origins(console, http):
    """On loopback: no other name of this machine, no other site's WebSocket, nothing changed from elsewhere."""
    url = console.url
    assert 200 == await status(http, url)
    assert 421 == await status(http, url, Host="evil.example")
    assert 403 == await status(http, f"{url}login", "POST", Origin="http://evil.example")
    assert 403 == await status(http, f"{url}logout", "POST")
    assert 405 == await status(http, f"{url}login", "POST", Origin=url.rstrip("/"))
    assert 403 == await status(http, f"{url}_nicegui_ws/socket.io/?EIO=4&transport=polling")
    assert await socket_is_let_in(http, url, Origin=url.rstrip("/"))
    assert not await socket_is_let_in(http, url, Origin="http://evil.example")
    assert not await socket_is_let_in(http, url)


async def test_bound_browser(console, http):
    """Each page forbids scripts but its own, frames, forms and connections elsewhere; its nonce is new each time."""
    nonces = set[str]()
    for _ in range(2):
        async with http.get(console.url) as answer:
            policy, page = answer.headers["Content-Security-Policy"], await answer.text()
        nonce = policy.partition("'nonce-")[2].partition("'")[0]
        nonces.add(nonce)
        assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        for part in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
            assert part in policy
        assert page.count("<script") == page.count(f'<script nonce="{nonce}"') > 0
    assert 2 == len(nonces)


@pytest.mark.parametrize("path", ["docs", "openapi.json", "redoc", "nothing"])
async def test_nothing_else_is_served(console, http, path):
    """The library's descriptions of its API are not there."""
    assert 404 == await status(http, console.url + path)


async def test_nobody_is_let_in_without_password(guarded, http):
    """Without a session there is no page, no file, no WebSocket; only the probe answers."""
    url = guarded.url
    origin = url.removesuffix("/relay/")
    assert 401 == await status(http, url)
    assert 401 == await status(http, f"{url}console.css")
    assert 401 == await status(http, url, Cookie="relay_console=guessed")
    assert 308 == await status(http, url.rstrip("/"))
    assert 200 == await status(http, f"{url}healthz")
    assert not await socket_is_let_in(http, url, Origin=origin)
    assert 401 == await status(http, url, X_User="ann")  # from an address that is not the proxy's
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(PROXY, 0))) as proxy:
        assert 200 == await status(proxy, url, X_User="ann")
        assert 401 == await status(proxy, url)


async def test_password_in_the_browser(browser, guarded, http):
    """A wrong password is refused; the right one leads to the page that was asked for; signing out ends everything."""
    async with tab(browser, allowed=("401",)) as page:
        await page.goto(guarded.url)
        await page.get_by_label("Password").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("This password is wrong.")
        await page.get_by_label("Password").fill(PASSWORD)
        await page.keyboard.press("Enter")
        await expect(page.locator(".banner .headline")).to_contain_text("Updates flow")
        (cookie,) = await page.context.cookies()
        assert ("relay_console", True, "Strict", "/relay") == (
            cookie["name"],
            cookie["httpOnly"],
            cookie["sameSite"],
            cookie["path"],
        )
        token = f"relay_console={cookie['value']}"
        assert 200 == await status(http, guarded.url, Cookie=token)
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Password")).to_be_visible()
        assert 401 == await status(http, guarded.url, Cookie=token)


async def test_behind_a_proxy(browser, guarded):
    """A proxy removes the path and names the user: nobody is asked, and pages, files, live news and links all work."""
    target = guarded.url.removesuffix("/relay/")
    async with reverse_proxy(target, "/relay", PROXY, {"X-User": "ann"}) as url, tab(browser) as page:
        await page.goto(url)
        await expect(page.locator(".banner .headline")).to_contain_text("Updates flow")
        await page.get_by_role("button", name="Dark or light").click()
        await expect(page.get_by_text("Colours: dark")).to_be_visible()
        await page.get_by_role("link", name="Dead letters").click()
        await page.get_by_label("Since").fill("1h")
        await page.get_by_label("Since").press("Enter")
        await page.wait_for_url(f"{url}dead-letters?since=1h")
        await page.get_by_role("button", name="Purge all that match").click()
        async with page.expect_download() as downloading:
            await page.get_by_role("button", name="Export").click()
        assert (await downloading.value).url.startswith(f"{url}export/")
        await expect(page.get_by_text("Nothing is exported yet.")).to_be_hidden()


async def test_signing_in(stage, tmp_path, http):
    """Signing in leads to this page only. After a few wrong passwords the right one is refused, too, for a while."""
    async with console_process(tmp_path, NATS_URL=stage.server.url, CONSOLE_PASSWORD=PASSWORD) as console:

        async def sign_in(password: str, wanted: str = "/") -> tuple[int, str | None]:
            form, origin = {"password": password, "next": wanted}, {"Origin": console.url.rstrip("/")}
            url = f"{console.url}login"
            async with http.post(url, data=form, headers=origin, allow_redirects=False) as answer:
                return answer.status, answer.headers.get("Location")

        for wanted, led in (("//evil.example", "/"), ("https://evil.example", "/"), ("/jobs?a=b", "/jobs?a=b")):
            assert (303, led) == await sign_in(PASSWORD, wanted)
        assert [(401, None)] * TRIES == [await sign_in("wrong") for _ in range(TRIES)]
        assert (429, None) == await sign_in(PASSWORD)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CONSOLE_HOST": "0.0.0.0"}, "RELAY_CONSOLE_HOST='0.0.0.0' is not allowed"),
        ({"CONSOLE_PASSWORD": "short"}, "RELAY_CONSOLE_PASSWORD='***' is not allowed"),
        ({"CONSOLE_PASSWORD": PASSWORD, "CONSOLE_HOST": "a" * 64}, "RELAY_CONSOLE_HOST='aaaa"),
    ],
)
async def test_refuses_to_start(relay, variables, said):
    """Open to everybody, or nowhere, it does not start: one line, exit code 2."""
    ended = await relay("console", **variables)
    assert (2, "") == (ended.code, ended.out)
    assert said in ended.err
    assert 1 == ended.err.count("\n")


async def test_taken_port(console, relay):
    """A port that is taken is told in one line, exit code 2."""
    port = console.url.rstrip("/").rpartition(":")[2]
    ended = await relay("console", CONSOLE_PORT=port)
    assert 2 == ended.code
    assert f"RELAY_CONSOLE_PORT='{port}' is not allowed: Address already in use on 127.0.0.1" in ended.err
    assert 1 == ended.err.count("\n")
