"""Can the Facilitator be reached, and does it let this validator in?

Signing in once more is harmless: a validator may have many connections, and what the Facilitator pushes meanwhile
goes to each of them. Without a heartbeat, which is not sent here, it routes no job to a validator on our account.
"""

import asyncio
import socket
import ssl
from typing import Final

from websockets import InvalidHandshake

from relay.contract.errors import IdentityError
from relay.contract.settings import FacilitatorSettings
from relay.contract.text import redact_url
from relay.contract.wire import Reply, authentication_request, decode_incoming
from relay.doctor.findings import Finding, fail, ok, unchecked
from relay.facilitator.identity import load_signer
from relay.facilitator.websocket import ConnectionClosed, WebSocket, connect

HOTKEY: Final = "hotkey"
FACILITATOR: Final = "facilitator"
_OPEN_TIMEOUT_S: Final = 4.0
_ANSWER_TIMEOUT_S: Final = 3.0
_CLOSE_TIMEOUT_S: Final = 1.0
_MAX_FRAME_BYTES: Final = 64 * 1024 * 1024


def check_hotkey(settings: FacilitatorSettings) -> tuple[Finding, str | None]:
    """Whether the hotkey can sign, and the message that signs in with it; None if it cannot or need not.

    To be called before the event loop runs, as `load_signer`.
    """
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


async def check_facilitator(settings: FacilitatorSettings, authentication: str | None) -> Finding:
    """Connect as the relay does, and sign in if there is an `authentication`."""
    if not settings.url:
        return unchecked(FACILITATOR, "RELAY_FACILITATOR_URL is not set")
    where = redact_url(settings.url)
    try:
        websocket = await connect(
            settings.url,
            max_size=_MAX_FRAME_BYTES,
            open_timeout_s=_OPEN_TIMEOUT_S,
            close_timeout_s=_CLOSE_TIMEOUT_S,
            on_writable=lambda: None,
        )
    except (OSError, TimeoutError, InvalidHandshake) as error:
        return fail(FACILITATOR, f"cannot connect to {where}: {str(error) or 'no answer in time'}", _remedy(error))
    try:
        if authentication is not None:
            return await _sign_in(websocket, authentication, where)
    finally:
        await websocket.close()
    if settings.auth == "none":
        return ok(FACILITATOR, f"{where} is a WebSocket; whether it lets us in is up to the proxy before it")
    return unchecked(FACILITATOR, f"without a hotkey nobody can sign in ({where} itself can be reached)")


async def _sign_in(websocket: WebSocket, authentication: str, where: str) -> Finding:
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            websocket.send(authentication.encode())
            websocket.flush()
            reply = await _reply(websocket)
    except TimeoutError:
        found = f"{where} does not answer the sign-in within {_ANSWER_TIMEOUT_S:g} s"
        return fail(FACILITATOR, found, "ask those who run the Facilitator")
    except ConnectionClosed as closed:
        remedy = "its database or cache may be down: ask those who run it; the relay goes on trying"
        return fail(FACILITATOR, f"{where} ended the connection at the sign-in: {closed}", remedy)
    if reply.status == "success":
        return ok(FACILITATOR, f"{where} lets this validator in")
    remedy = "check RELAY_FACILITATOR_HOTKEY_FILE, and that this validator is registered and active there"
    return fail(FACILITATOR, f"{where} refuses this validator: {reply.complaint}", remedy)


async def _reply(websocket: WebSocket) -> Reply:
    while True:
        for message in await websocket.receive():
            if isinstance(reply := decode_incoming(message), Reply):
                return reply


def _remedy(error: Exception) -> str:
    match error:
        case InvalidHandshake():
            return "somebody else answers there: check host and path of RELAY_FACILITATOR_URL"
        case ssl.SSLError():
            return "its certificate must be one that this machine trusts: mend it there, or the time of this machine"
        case socket.gaierror():
            return "check the host name in RELAY_FACILITATOR_URL, and DNS"
        case _:
            return "it is down or out of reach: check RELAY_FACILITATOR_URL and the network; the relay goes on trying"
