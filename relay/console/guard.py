"""Stands before every request: host, origin, sign-in, and the headers that bind the browser. An ASGI middleware."""

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qs, quote

from relay.console.login import login_page
from relay.console.requests import cookie_of, is_known_host, is_same_origin, user_of, without_prefix
from relay.console.sessions import SESSION_S, Sessions
from relay.contract.console_settings import ConsoleSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NONCE: Final = secrets.token_urlsafe(24)
"""Stands in the library's page for the nonce. Nobody outside knows it, so nothing that is shown can contain it."""
_COOKIE: Final = "relay_console"
_MOST_FORM_BYTES: Final = 4096
_SOCKET: Final = "/_nicegui_ws/"
ALIVE: Final = "/healthz"
_WRONG_HOST: Final = (
    "relay console: it listens on loopback, where it is served only under names of this machine, such as localhost;"
    " behind a proxy, set RELAY_CONSOLE_HOST to another address of this machine (docs/console.md, Who may see it)"
)
# Vue compiles the templates of the library in the browser, which needs unsafe-eval; Quasar sets styles inline.
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'; object-src 'none'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Lets in what may come in, and hands it to `app`.

    Args:
        app: the pages.
        settings: who may come in.
    """

    def __init__(self, app: App, settings: ConsoleSettings) -> None:
        self._app = app
        self._settings = settings
        password = settings.password.get_secret_value() if settings.password is not None else None
        self._sessions = Sessions(password, secrets.token_urlsafe) if password is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, _binding(send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = _headers(scope), without_prefix(scope["path"], self._settings.path_prefix)
        host = headers.get("host", "")
        if not is_known_host(host, self._settings):
            await _answer(send, 421, _WRONG_HOST)
        elif path is None:
            await _answer(send, 308, "", {"Location": f"{self._settings.path_prefix}/"})
        elif path == ALIVE:
            await _answer(send, 200, "ok")
        elif scope["method"] not in {"GET", "HEAD"}:
            if not is_same_origin(headers.get("origin", ""), host):
                await _answer(send, 403, "relay console: the request does not come from this page")
            else:
                await self._post(path, headers, receive, send)
        elif path.startswith(_SOCKET):
            await _answer(send, 403, "relay console: only a WebSocket is served here")
        elif not self._is_let_in(scope, headers):
            await self._ask(headers, path, scope["query_string"].decode("latin-1"), send)
        else:
            await self._app(self._passed_on(scope, path), receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = _headers(scope), without_prefix(scope["path"], self._settings.path_prefix)
        host = headers.get("host", "")
        known = is_known_host(host, self._settings) and is_same_origin(headers.get("origin", ""), host)
        if path is None or not known or not self._is_let_in(scope, headers):
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return

        async def receive_while_let_in() -> Message:
            message = await receive()
            return message if self._is_let_in(scope, headers) else {"type": "websocket.disconnect", "code": 1008}

        await self._app(self._passed_on(scope, path), receive_while_let_in, send)

    def _is_let_in(self, scope: Scope, headers: dict[str, str]) -> bool:
        if self._sessions is None and self._settings.user_header is None:
            return True
        peer = (scope.get("client") or ("",))[0]
        if user_of(headers, peer, self._settings):
            return True
        return self._sessions is not None and self._sessions.holds(cookie_of(headers, _COOKIE), time.monotonic())

    def _passed_on(self, scope: Scope, path: str) -> Scope:
        """The request as the pages get it: without the prefix, of which the library reads in a header."""
        kept = [(name, value) for name, value in scope["headers"] if name != b"x-forwarded-prefix"]
        prefix = [(b"x-forwarded-prefix", self._settings.path_prefix.encode())] if self._settings.path_prefix else []
        return {**scope, "path": path, "raw_path": quote(path).encode(), "root_path": "", "headers": kept + prefix}

    async def _ask(self, headers: dict[str, str], path: str, query: str, send: Send, problem: str = "") -> None:
        if self._sessions is None:
            await _answer(send, 403, "relay console: only by the proxy that says who you are")
        elif headers.get("sec-fetch-site") == "cross-site":
            # A link of another site comes without the cookie, which is SameSite=Strict. The browser asks again with it.
            again = '<!doctype html><meta http-equiv="refresh" content="0">'
            await _answer(send, 200, again, {"Content-Type": "text/html; charset=utf-8"})
        else:
            await self._show_login(send, f"{path}?{query}" if query else path, problem)

    async def _show_login(self, send: Send, wanted: str, problem: str, status: int = 401) -> None:
        page = login_page(f"{self._settings.path_prefix}/login", wanted, problem)
        await _answer(send, status, page, {"Content-Type": "text/html; charset=utf-8"})

    async def _post(self, path: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        if self._sessions is None or path not in {"/login", "/logout"}:
            await _answer(send, 405, "relay console: nothing is changed by this request")
        elif path == "/logout":
            self._sessions.sign_out(cookie_of(headers, _COOKIE))
            await self._redirect(send, "/", self._cookie("", 0, headers))
        else:
            await self._sign_in(self._sessions, headers, receive, send)

    async def _sign_in(self, sessions: Sessions, headers: dict[str, str], receive: Receive, send: Send) -> None:
        form, now_s = await _form(receive), time.monotonic()
        wanted = form.get("next", "/")
        if (wait_s := sessions.must_wait_s(now_s)) > 0:
            problem = f"Too many wrong passwords. Try again in {wait_s:.0f} s."
            await self._show_login(send, wanted, problem, 429)
        elif (token := sessions.sign_in(form.get("password", ""), now_s)) is None:
            await self._show_login(send, wanted, "This password is wrong.")
        else:
            await self._redirect(send, wanted, self._cookie(token, int(SESSION_S), headers))

    async def _redirect(self, send: Send, path: str, cookie: str) -> None:
        safe = path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"
        where = self._settings.path_prefix + quote(safe, safe="/?=&-_.~:%")
        await _answer(send, 303, "", {"Location": where, "Set-Cookie": cookie})

    def _cookie(self, token: str, seconds: int, headers: dict[str, str]) -> str:
        secure = "; Secure" if headers.get("x-forwarded-proto") == "https" else ""
        path = self._settings.path_prefix or "/"
        return f"{_COOKIE}={token}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _headers(scope: Scope) -> dict[str, str]:
    """The headers by name in lower case. Of a name that comes twice none counts: a proxy may have read the other."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name, value in scope["headers"]:
        text = name.decode("latin-1").lower()
        if text in found:
            twice.add(text)
        found[text] = value.decode("latin-1")
    return {name: value for name, value in found.items() if name not in twice}


async def _form(receive: Receive) -> dict[str, str]:
    """The fields of a form; none if it is too large."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _MOST_FORM_BYTES or message["type"] != "http.request":
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}


async def _answer(send: Send, status: int, body: str, headers: dict[str, str] | None = None) -> None:
    given = {"Content-Type": "text/plain; charset=utf-8"} | (headers or {})
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body.encode()})


def _binding(send: Send) -> Send:
    """`send` with the headers that bind the browser. The scripts of a page get the page's own nonce."""
    start: Message = {}
    page: list[bytes] = []
    nonce = secrets.token_urlsafe(16)

    async def bound(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            added = _HEADERS | {"Content-Security-Policy": _POLICY.format(nonce=nonce)}
            kept = [each for each in message["headers"] if each[0].lower() != b"x-powered-by"]
            message["headers"] = kept + [(name.lower().encode(), value.encode()) for name, value in added.items()]
            if not _is_page(message):
                await send(message)
            else:
                start = message
        elif not start:
            await send(message)
        else:
            page.append(message.get("body", b""))
            if not message.get("more_body"):
                await _send_page(send, start, b"".join(page).replace(NONCE.encode(), nonce.encode()))

    return bound


def _is_page(start: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in start["headers"])


async def _send_page(send: Send, start: Message, body: bytes) -> None:
    kept = [each for each in start["headers"] if each[0].lower() not in {b"content-length", b"cache-control"}]
    start["headers"] = [*kept, (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send(start)
    await send({"type": "http.response.body", "body": body})
