"""The options of a publisher: where NATS is, how to sign in there, and how many updates may wait."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast, get_args

from pydantic import SecretStr, ValidationError

from relay.contract.contradictions import find_contradiction, variable_of
from relay.contract.environment import concerns, load_settings, without_line_ends
from relay.contract.errors import ConfigurationError, RelayError
from relay.contract.model import JobStatusUpdate
from relay.contract.settings import NatsSettings
from relay.observability.logs import get_logger

_PREFIX: Final = "RELAY_NATS_"
_INTERRUPTED_S: Final = 1.0
_SECRETS: Final = frozenset({"user", "password", "token"})
_log = get_logger(__name__, guest=True)


OnError = Callable[[JobStatusUpdate, RelayError], object]
"""Called with an update that was not published, and why."""
OnTooLarge = Literal["error", "truncate"]

_Rule = tuple[Callable[[float], bool], str]
# Not a number is allowed by none of them.
_ABOVE_0: Final[_Rule] = (lambda value: value > 0, "a number of seconds above 0")
_FROM_0: Final[_Rule] = (lambda value: value >= 0, "a number of seconds, not below 0")
_AT_LEAST_1: Final[_Rule] = (lambda value: value >= 1, "a number from 1")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a publish may take, and how much may wait.

    Attributes:
        timeout_s: seconds from the call to the PubAck, including waits for the job's earlier updates and for NATS, and
            all tries. Keep it below the 2 minutes for which JetStream recognises a message id.
        max_updates: how many updates may be without a PubAck.
        max_bytes: how many bytes the bodies of these updates may have in total.
        close_timeout_s: for how many seconds `close` goes on publishing the updates that wait.

    Raises ConfigurationError for a value that is not allowed.
    """

    timeout_s: float = 30.0
    max_updates: int = 1000
    max_bytes: int = 16 * 1024 * 1024
    close_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        least = {
            "timeout_s": _ABOVE_0,
            "max_updates": _AT_LEAST_1,
            "max_bytes": _AT_LEAST_1,
            "close_timeout_s": _FROM_0,
        }
        for name, rule in least.items():
            _require(name, getattr(self, name), rule)


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """All that a publisher was made with. Raises ConfigurationError for what is not allowed."""

    settings: NatsSettings
    limits: Limits
    on_error: OnError | None
    on_too_large: OnTooLarge

    def __post_init__(self) -> None:
        if self.on_too_large not in get_args(OnTooLarge):
            raise ConfigurationError("on_too_large", self.on_too_large, "'error' or 'truncate'")
        if self.on_error is not None and not callable(self.on_error):
            raise ConfigurationError("on_error", "***", "a function of an update and an error")


def close_time(timeout_s: float | None, limits: Limits, error: BaseException | None = None) -> float:
    """How long to go on publishing at the end. If an interrupt or a cancellation ends the program, only for a moment.

    Raises ConfigurationError for a `timeout_s` that is not allowed.
    """
    if error is not None and not isinstance(error, Exception):
        return min(limits.close_timeout_s, _INTERRUPTED_S)
    if timeout_s is None:
        return limits.close_timeout_s
    _require("timeout_s", timeout_s, _FROM_0)
    return timeout_s


def time_of_call(timeout_s: float | None, default_s: float) -> float:
    """The argument of a call, or its default. Raises ConfigurationError unless it is a number of seconds above 0."""
    if timeout_s is None:
        return default_s
    _require("timeout_s", timeout_s, _ABOVE_0)
    return timeout_s


def _require(name: str, value: Any, rule: _Rule) -> None:
    allows, allowed = rule
    try:
        is_allowed = allows(value)
    except TypeError:
        is_allowed = False
    if not is_allowed:
        raise ConfigurationError(name, value, allowed)


DEFAULT_CHECK_S: Final = 5.0
DEFAULT_SERVER: Final = "nats://127.0.0.1:4222"
DEFAULT_LIMITS: Final = Limits()


class Credentials(TypedDict, total=False):
    """How to sign in to NATS. Each key is the relay's setting of that name: `password` is `RELAY_NATS_PASSWORD`."""

    user: str
    password: str | SecretStr
    token: str | SecretStr
    creds: str | Path
    nkey_file: str | Path
    tls_first: bool
    inbox_prefix: str
    domain: str
    api_prefix: str
    ca_file: str | Path
    cert_file: str | Path
    key_file: str | Path


def nats_settings(servers: str | Sequence[str], credentials: Credentials) -> NatsSettings:
    """The settings of a connection to `servers`: a sequence of addresses, or one string with commas between them.

    Raises ConfigurationError for the first argument that is not allowed, and for arguments that do not go together.
    """
    addresses = servers if isinstance(servers, str) else tuple(servers)
    try:
        settings = NatsSettings.model_validate({"urls": addresses, **_as_meant(credentials)})
    except ValidationError as error:
        # The value is not shown, because an address, or a file's content given instead of its path, may hold a secret.
        raise _refusal(str(error.errors(include_context=False, include_input=False)[0]["loc"][0])) from None
    if found := find_contradiction(settings):
        given = found.field == "urls" or found.field in credentials
        raise ConfigurationError(_argument(found.field), "***" if given else "", found.allowed)
    return settings


def from_environment(environ: Mapping[str, str] | None) -> tuple[Sequence[str], Credentials]:
    """Servers and credentials from the RELAY_NATS_* variables in `environ`; if None, in the process's environment.

    Raises ConfigurationError for the first of these variables that is not allowed, or does not go with the others.
    """
    variables = os.environ if environ is None else environ
    ours = {name: value for name, value in variables.items() if concerns(name, _PREFIX)}
    nats = load_settings(ours, None, notice=_log.warning).nats
    return nats.urls, cast("Credentials", nats.model_dump(exclude={"urls"}, exclude_none=True))


def _as_meant(credentials: Credentials) -> dict[str, Any]:
    """The credentials; texts that were read from a file, without the line end of that file."""
    notices: list[str] = []
    meant = {
        name: without_line_ends(name, value, notices) if name in _SECRETS and isinstance(value, str) else value
        for name, value in credentials.items()
    }
    for each in notices:
        _log.warning(each)
    return meant


def _refusal(field: str) -> ConfigurationError:
    allowed = variable_of(field).allowed if field in NatsSettings.model_fields else "there is no such argument"
    return ConfigurationError(_argument(field), "***", allowed)


def _argument(field: str) -> str:
    return "servers" if field == "urls" else field
