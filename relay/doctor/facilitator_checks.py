"""The checks of the hotkey and of the Facilitator: can it be reached, and does it accept this validator?

One more sign-in does no harm: a validator may have many connections, and the Facilitator sends its pushes to each of
them. It routes jobs only to connections that send heartbeats, and the doctor sends none.
"""

import asyncio
import socket
import ssl
from typing import Final

from websockets import InvalidHandshake, InvalidStatus, ProxyError

from relay.contract.errors import IdentityError
from relay.contract.facilitator_messages import Reply, authentication_request, decode_incoming
from relay.contract.settings import FacilitatorSettings
from relay.contract.text import redact_url
from relay.doctor.findings import Finding, fail, ok, unchecked, warn
from relay.facilitator.identity import UNUSED_HOTKEY, load_signer
from relay.facilitator.sign_in import remedy
from relay.facilitator.websocket import CannotConnect, ConnectionClosed, WebSocket, connect
from relay.network.dialer import Dialer

HOTKEY: Final = "hotkey"
FACILITATOR: Final = "facilitator"
_CLOSE_TIMEOUT_S: Final = 1.0
_CREDENTIALS: Final = (
    "the proxy before it wants credentials: give user:password@ in RELAY_FACILITATOR_URL, or RELAY_FACILITATOR_HEADERS"
)
_TROUBLE: Final = (
    "a proxy answers, and the Facilitator behind it does not: ask those who run it; the relay goes on trying"
)
_UNTRUSTED: Final = (
    "this machine does not trust its certificate: as the error says, fix the certificate, the host name in "
    "RELAY_FACILITATOR_URL, the authorities that this machine trusts, or its clock"
)
_ANOTHER_SERVER: Final = "another server answers there: check host and path of RELAY_FACILITATOR_URL"
_STATUS_REMEDIES: Final = {
    401: _CREDENTIALS,
    403: _CREDENTIALS,
    429: "it limits connections: lower RELAY_FACILITATOR_CONNECTIONS, or ask for more",
    502: _TROUBLE,
    503: _TROUBLE,
    504: _TROUBLE,
}
"""By HTTP status. With 500 the Facilitator also answers to a path that it does not know."""
_MAX_FRAME_BYTES: Final = 64 * 1024 * 1024


def check_hotkey(settings: FacilitatorSettings) -> tuple[Finding, str | None]:
    """Whether the hotkey can sign, and the sign-in message made with it; None if there is none.

    Call it before the event loop runs, like `load_signer`.
    """
    if settings.auth == "none" and settings.hotkey_file is not None:
        return warn(HOTKEY, UNUSED_HOTKEY, "unset one of the two"), None
    if settings.auth == "none":
        return ok(HOTKEY, "none is used (RELAY_FACILITATOR_AUTH=none)"), None
    if settings.hotkey_file is None:
        return unchecked(HOTKEY, "RELAY_FACILITATOR_HOTKEY_FILE is not set"), None
    password = settings.hotkey_password
    try:
        signer = load_signer(settings.hotkey_file, password.get_secret_value() if password else None)
    except IdentityError as error:
        return fail(HOTKEY, f"{error.path}: {error.problem}", error.remedy), None
    authentication = authentication_request(signer.public_key_hex, signer.sign_public_key())
    return ok(HOTKEY, f"it can sign; its public key is {signer.public_key_hex}"), authentication


async def check_facilitator(
    settings: FacilitatorSettings,
    authentication: str | None,
    *,
    open_timeout_s: float = 4.0,
    answer_timeout_s: float = 3.0,
) -> Finding:
    """Connect as the relay does, and sign in with `authentication` if it is given. Cancelling is safe."""
    if not settings.url:
        return unchecked(FACILITATOR, "RELAY_FACILITATOR_URL is not set")
    where = redact_url(settings.url)
    try:
        websocket = await connect(
            settings.url,
            proxy=settings.proxy_url,
            headers=settings.upgrade_headers,
            max_size=_MAX_FRAME_BYTES,
            open_timeout_s=open_timeout_s,
            close_timeout_s=_CLOSE_TIMEOUT_S,
            on_writable=lambda: None,
            dialer=Dialer(),
        )
    except CannotConnect as error:
        return fail(FACILITATOR, f"cannot connect to {where}: {error}", _remedy(error.__cause__))
    try:
        if authentication is not None:
            return await _sign_in(websocket, authentication, where, answer_timeout_s)
    finally:
        await websocket.close()
    if settings.auth == "none":
        return ok(FACILITATOR, f"{where} is a WebSocket; whether it lets us in is up to the proxy before it")
    return unchecked(FACILITATOR, f"without a hotkey nobody can sign in ({where} itself can be reached)")


async def _sign_in(websocket: WebSocket, authentication: str, where: str, timeout_s: float) -> Finding:
    try:
        async with asyncio.timeout(timeout_s):
            websocket.send(authentication.encode())
            reply = await _reply(websocket)
    except TimeoutError:
        found = f"{where} does not answer the sign-in within {timeout_s:g} s"
        return fail(FACILITATOR, found, "ask those who run the Facilitator")
    except ConnectionClosed as closed:
        found = f"{where} ended the connection at the sign-in: {closed}"
        return fail(
            FACILITATOR, found, "its database or cache may be down: ask those who run it; the relay goes on trying"
        )
    if reply.status == "success":
        return ok(FACILITATOR, f"{where} lets this validator in")
    return fail(FACILITATOR, f"{where} refuses this validator: {reply.complaint}", remedy(reply.complaint))


async def _reply(websocket: WebSocket) -> Reply:
    while True:
        for message in await websocket.receive():
            if isinstance(reply := decode_incoming(message), Reply):
                return reply


def _remedy_of_answer(error: InvalidHandshake) -> str:
    response = error.response if isinstance(error, InvalidStatus) else None
    if response is None:
        return _ANOTHER_SERVER
    if "Location" in response.headers:
        return "set RELAY_FACILITATOR_URL to where the Facilitator is now"
    return _STATUS_REMEDIES.get(response.status_code, _ANOTHER_SERVER)


def _remedy(error: BaseException | None) -> str:
    match error:
        case ProxyError():
            return "check RELAY_FACILITATOR_PROXY, HTTPS_PROXY or ALL_PROXY, and what that proxy permits"
        case InvalidHandshake():
            return _remedy_of_answer(error)
        case ssl.SSLError():
            return _UNTRUSTED
        case socket.gaierror():
            return "check the host name in RELAY_FACILITATOR_URL, and DNS"
        case _:
            return "it is down or out of reach: check RELAY_FACILITATOR_URL and the network; the relay goes on trying"
