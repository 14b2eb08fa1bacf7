"""Why an attempt to connect to nats-server ended: how it ended, what that likely means, and what to do about it."""

import ssl
from collections.abc import Mapping
from typing import Any, Final

import nats.errors

from relay.contract.text import describe

_NO_INFO: Final = "empty response from server"
"""What nats-py says if the connection ends before the first line."""
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""The reasons that OpenSSL gives if what it reads is not TLS."""
_EXPECTS_TLS_FIRST: Final = (
    "it may expect TLS before it says anything (`handshake_first: true` in its configuration): then set"
    " RELAY_NATS_TLS_FIRST=true"
)
_SPEAKS_FIRST: Final = (
    "it may not expect TLS before all else (no `handshake_first` in its configuration): then unset"
    " RELAY_NATS_TLS_FIRST; or it has as many connections as its max_connections allows: then its log says so"
)
_ANSWERS_IN_CLEAR_TEXT: Final = (
    "the server ends the TLS handshake in clear text, as it does when it has as many connections as its max_connections"
    " allows, or takes no more of them for another reason: its log says which"
)
_HANGS_UP: Final = (
    "the server, or what is between, hangs up as we sign in, and the reason did not reach us: the server's log has it"
)
_REFUSES_CERTIFICATE: Final = (
    "the server demands a client certificate (RELAY_NATS_CERT_FILE), and may have refused ours: there is none, it has"
    " expired, or the server does not trust its authority"
)


class AttemptFailed(nats.errors.Error):
    """An attempt to connect failed. The text says how it ended, and what that likely means."""


def explain(
    error: BaseException, *, info: Mapping[str, Any] | None, websocket: bool, options: Mapping[str, Any]
) -> AttemptFailed | None:
    """What to raise instead of the error that ended an attempt; None if nothing explains it better.

    Args:
        error: what ended it.
        info: the server's first line, INFO; None if it has not said it.
        websocket: whether NATS goes over WebSocket.
        options: those that nats-py's client connects with.
    """
    if info is None and not websocket and (ended := _before_info(error, options)) is not None:
        return AttemptFailed(f"{ended}; {_SPEAKS_FIRST if options['tls_handshake_first'] else _EXPECTS_TLS_FIRST}")
    if info is not None and _reads_no_tls(error):
        return AttemptFailed(f"{describe(error)}; {_ANSWERS_IN_CLEAR_TEXT}")
    if info is not None and info.get("tls_verify") and _hung_up(error):
        # With TLS 1.3 it refuses a certificate only after the handshake, and a write that fails first loses its reason.
        return AttemptFailed(f"{describe(error)}; {_REFUSES_CERTIFICATE}")
    if info is not None and isinstance(error, nats.errors.UnexpectedEOF):
        return AttemptFailed(_HANGS_UP)
    if isinstance(error, Exception) and not isinstance(error, OSError | nats.errors.Error):
        # After an exception that nats-py does not expect its reconnect would end, and nobody would notice.
        return AttemptFailed(describe(error))
    return None


def _before_info(error: BaseException, options: Mapping[str, Any]) -> str | None:
    """How an attempt ended before INFO; None if that says nothing about who speaks first."""
    if isinstance(error, TimeoutError):
        return f"no answer within {options['connect_timeout']:g} s"
    if _reads_no_tls(error):
        return "it does not answer with TLS"
    return "it hangs up without a word" if _NO_INFO in str(error) else None


def _reads_no_tls(error: BaseException) -> bool:
    return isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS


def _hung_up(error: BaseException) -> bool:
    """Whether the server may have ended the connection; it has not if it is we who refuse its certificate."""
    we_refuse_its_own = isinstance(error, ssl.SSLCertVerificationError)
    return isinstance(error, OSError | nats.errors.UnexpectedEOF) and not we_refuse_its_own
