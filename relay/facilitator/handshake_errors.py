"""Why a server did not open a WebSocket, in words for an operator."""

from typing import Final
from urllib.parse import urljoin

from websockets.exceptions import InvalidMessage, InvalidStatus, NegotiationError

from relay.contract.text import ascii_line, describe, one_line, redact_url

_MAX_LOCATION_CHARS: Final = 300
_MAX_SHOWN_CHARS: Final = 120


def explained(error: Exception, url: str) -> str:
    """The message of an error; if the server sends us elsewhere, also where to."""
    told = describe(error)
    if isinstance(error, InvalidMessage) and error.__cause__ is not None:
        return f"{told}: {ascii_line(describe(error.__cause__), _MAX_SHOWN_CHARS)}"
    if isinstance(error, NegotiationError):
        return f"the answer names an extension or a subprotocol, and we have asked for none ({told})"
    if not isinstance(error, InvalidStatus) or "Location" not in error.response.headers:
        return told
    try:
        target = redact_url(urljoin(url, one_line(error.response.headers["Location"])))[:_MAX_LOCATION_CHARS]
    except ValueError:
        target = "something that is no address"
    return f"{told}; it redirects to {target}, and redirects are not followed"


def no_answer(begun: bytes) -> str:
    """What is missing of the answer to the request for a WebSocket, which has begun so."""
    if not begun:
        return "there is no answer to the request for a WebSocket"
    line = ascii_line(begun.partition(b"\r\n")[0].decode("latin-1"), _MAX_SHOWN_CHARS)
    return f"the answer to the request for a WebSocket, which begins with '{line}', is not complete"
