"""The options of a publisher: where NATS is, how to sign in there, and how many updates may wait."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict, get_args

from relay.contract.errors import ConfigurationError, RelayError

if TYPE_CHECKING:  # see __init__.py
    from pydantic import SecretStr

    from relay.contract.model import JobStatusUpdate
    from relay.contract.settings import NatsSettings

_INTERRUPTED_S: Final = 1.0


OnError = Callable[["JobStatusUpdate", RelayError], object]
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

    settings: "NatsSettings"
    limits: Limits
    on_error: OnError | None
    on_too_large: OnTooLarge

    @classmethod
    def of(
        cls,
        servers: str | Sequence[str],
        credentials: "Credentials",
        limits: Limits,
        on_error: OnError | None,
        on_too_large: OnTooLarge,
    ) -> Self:
        """The options from the arguments of a publisher."""
        from relay.producer.sign_in import nats_settings  # noqa: PLC0415 - see __init__.py

        return cls(nats_settings(servers, credentials), limits, on_error, on_too_large)

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
    password: "str | SecretStr"
    token: "str | SecretStr"
    creds: str | Path
    nkey_file: str | Path
    tls_first: bool
    inbox_prefix: str
    domain: str
    api_prefix: str
    ca_file: str | Path
    cert_file: str | Path
    key_file: str | Path
