"""Settings of NATS that do not go together, each of which is allowed by itself."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

from relay.contract.settings import NatsSettings
from relay.contract.settings_group import Variable

_PAIRS: Final = (("user", "password"), ("cert_file", "key_file"))
_WEBSOCKET_SCHEMES: Final = frozenset({"ws", "wss"})


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A field that does not go with the others, and what is allowed, in words."""

    field: str
    allowed: str


def find_contradiction(settings: NatsSettings) -> Contradiction | None:
    """The first contradiction; None if all fields go together."""
    return _half_of_a_pair(settings) or _clear_text(settings) or _second_sign_in(settings) or _second_api(settings)


def variable_of(field: str) -> Variable:
    """The environment variable that fills this field of NatsSettings."""
    return next(mark for mark in NatsSettings.model_fields[field].metadata if isinstance(mark, Variable))


def _half_of_a_pair(settings: NatsSettings) -> Contradiction | None:
    for pair in _PAIRS:
        missing = [field for field in pair if getattr(settings, field) is None]
        if len(missing) == 1:
            return Contradiction(missing[0], variable_of(missing[0]).allowed)
    return None


def _clear_text(settings: NatsSettings) -> Contradiction | None:
    schemes = {urlsplit(url).scheme for url in settings.urls}
    if settings.tls_first and schemes & _WEBSOCKET_SCHEMES:
        return Contradiction("tls_first", variable_of("tls_first").allowed)
    if settings.wants_tls and "ws" in schemes:
        return Contradiction(
            "urls", "ws:// is never encrypted, but another address, a CA file or a certificate asks for TLS"
        )
    if schemes & _WEBSOCKET_SCHEMES and schemes - _WEBSOCKET_SCHEMES:
        return Contradiction("urls", "either all addresses begin with ws:// or wss://, or none does")
    if schemes & _WEBSOCKET_SCHEMES and find_spec("aiohttp") is None:
        return Contradiction("urls", "ws:// and wss:// need aiohttp: pip install 'job-status-relay[websocket]'")
    return None


def ways_to_sign_in(settings: NatsSettings) -> list[str]:
    """The fields that say how to sign in at NATS."""
    in_address = ["urls"] if any(urlsplit(url).username is not None for url in settings.urls) else []
    fields = ("creds", "nkey_file", "user", "token")
    return in_address + [field for field in fields if getattr(settings, field) is not None]


def _second_sign_in(settings: NatsSettings) -> Contradiction | None:
    # nats-py would choose one without a word, and another one for a server that asks for no signature. It sends a token
    # along with credentials or an NKey, which an auth callout of the server may want.
    ways = ways_to_sign_in(settings)
    if len(ways) <= 1 or ways in (["creds", "token"], ["nkey_file", "token"]):
        return None
    return Contradiction(ways[1], f"{variable_of(ways[0]).name} says already how to sign in at NATS; leave one out")


def _second_api(settings: NatsSettings) -> Contradiction | None:
    if settings.domain is None or settings.api_prefix is None:
        return None
    return Contradiction("api_prefix", variable_of("api_prefix").allowed)
