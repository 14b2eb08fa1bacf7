"""What a publisher is made with: where NATS is, how to sign in there, and how much may wait."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict, cast

from pydantic import SecretStr, ValidationError

from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError
from relay.contract.settings import NatsSettings, Variable

_OURS: Final = "RELAY_NATS_"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a publish may take, and how much may wait.

    timeout_s: until an update's PubAck, from the call on: waiting for its job's earlier updates, for NATS to come back
        and every further try included. Less than the 2 minutes for which JetStream knows a message id again.
    max_updates: updates without a PubAck. max_bytes: of their bodies in all.
    close_timeout_s: how long `close` goes on publishing what waits.
    """

    timeout_s: float = 30.0
    max_updates: int = 1000
    max_bytes: int = 16 * 1024 * 1024
    close_timeout_s: float = 10.0


class Credentials(TypedDict, total=False):
    """How to sign in at NATS; each as the setting of the relay of that name (`password`: `RELAY_NATS_PASSWORD`)."""

    user: str
    password: str | SecretStr
    token: str | SecretStr
    creds: str | Path
    nkey_file: str | Path
    inbox_prefix: str
    ca_file: str | Path
    cert_file: str | Path
    key_file: str | Path


def nats_settings(servers: str | Sequence[str], credentials: Credentials) -> NatsSettings:
    """The settings of a connection to `servers`: addresses, or one text with commas between them.

    Raises ConfigurationError for the first argument that is not allowed or lacks its companion.
    """
    addresses = servers if isinstance(servers, str) else tuple(servers)
    try:
        settings = NatsSettings.model_validate({"urls": addresses, **credentials})
    except ValidationError as error:
        # The value is not shown: an address, or a file's content given in place of its path, may hold a secret.
        raise _refusal(str(error.errors(include_context=False, include_input=False)[0]["loc"][0])) from None
    if settings.missing_companion:
        raise _refusal(settings.missing_companion, "")
    return settings


def from_environment(environ: Mapping[str, str] | None) -> tuple[Sequence[str], Credentials]:
    """Servers and credentials that the RELAY_NATS_* variables give; other variables are not looked at.

    Raises ConfigurationError for the first variable that is not allowed or lacks its companion.
    """
    given = os.environ if environ is None else environ
    nats = load_settings({name: value for name, value in given.items() if name.startswith(_OURS)}, None).nats
    return nats.urls, cast("Credentials", nats.model_dump(exclude={"urls"}, exclude_none=True))


def _refusal(name: str, value: str = "***") -> ConfigurationError:
    field = NatsSettings.model_fields.get(name)
    marks = field.metadata if field else []
    allowed = next((mark.allowed for mark in marks if isinstance(mark, Variable)), "there is no such argument")
    return ConfigurationError("servers" if name == "urls" else name, value, allowed)
