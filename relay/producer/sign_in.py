"""Where NATS is and how to sign in there: the arguments of publishers and clients as settings."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from pydantic import ValidationError

from relay.contract.addresses import problem_of
from relay.contract.contradictions import find_contradiction, variable_of
from relay.contract.environment import concerns, load_settings, without_line_ends
from relay.contract.errors import ConfigurationError
from relay.contract.settings import NatsSettings
from relay.observability.logs import get_logger
from relay.producer.options import Credentials

_PREFIX: Final = "RELAY_NATS_"
_SECRETS: Final = frozenset({"user", "password", "token"})
_log = get_logger(__name__, guest=True)


def nats_settings(servers: str | Sequence[str], credentials: Credentials) -> NatsSettings:
    """The settings of a connection to `servers`: a sequence of addresses, or one string with commas between them.

    Raises ConfigurationError for the first argument that is not allowed, and for arguments that do not go together.
    """
    addresses = servers if isinstance(servers, str) else tuple(servers)
    try:
        settings = NatsSettings.model_validate({"urls": addresses, **_as_meant(credentials)})
    except ValidationError as error:
        # The value is not shown, because an address, or a file's content given instead of its path, may hold a secret.
        field = str(error.errors(include_context=False, include_input=False)[0]["loc"][0])
        raise _refusal(field, problem_of(error)) from None
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


def _refusal(field: str, problem: str) -> ConfigurationError:
    allowed = variable_of(field).allowed if field in NatsSettings.model_fields else "there is no such argument"
    return ConfigurationError(_argument(field), "***", allowed, problem)


def _argument(field: str) -> str:
    return "servers" if field == "urls" else field
