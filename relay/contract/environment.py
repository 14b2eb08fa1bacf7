"""Read the settings from environment variables with the prefix `RELAY_`, and from a `.env` file."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from relay.contract.contradictions import find_contradiction, variable_of
from relay.contract.errors import ConfigurationError
from relay.contract.settings import Settings, SettingsGroup
from relay.contract.settings_table import BY_VARIABLE, GROUPS, as_text

_PREFIX: Final = "RELAY_"
_LONGEST_PATH: Final = 255
_SERVICE_LINK_NAME: Final = re.compile(r"_SERVICE_(HOST|PORT)\b|_SERVICE_PORT_|_PORT_\d+_(TCP|UDP|SCTP)")
_SERVICE_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://")


def load_settings(environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env") -> Settings:
    """The settings that `environ` (the process's environment if None) and `env_file` give; `environ` wins.

    An empty variable counts as unset, and so does a missing file. Raises ConfigurationError for the first variable
    that is unknown, has a value that is not allowed, or needs another one that is missing.
    """
    given = _read_env_file(env_file) | dict(os.environ if environ is None else environ)
    given = {name: value for name, value in given.items() if name.startswith(_PREFIX) and value}
    _refuse_unknown(given)
    settings = Settings.model_validate({group: _fill(group, given) for group in GROUPS})
    _refuse_contradictions(settings, given)
    return settings


def _read_env_file(path: str | Path | None) -> dict[str, str]:
    if path is None:
        return {}
    # Imported here: job runners import this module through `relay.producer`, and they read no `.env` file.
    from pydantic_settings import BaseSettings, DotEnvSettingsSource  # noqa: PLC0415

    try:
        source = DotEnvSettingsSource(BaseSettings, env_file=path, env_file_encoding="utf-8", case_sensitive=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), str(error), "a readable UTF-8 file of NAME=value lines") from error
    return {name: value for name, value in source.env_vars.items() if value is not None}


def _refuse_unknown(given: Mapping[str, str]) -> None:
    for name, value in given.items():
        if name in BY_VARIABLE or _is_service_link(name, value):
            continue
        nearest = difflib.get_close_matches(name, BY_VARIABLE, n=1, cutoff=0)[0]
        raise ConfigurationError(ascii(name)[1:-1], "***", f"there is no such setting; the nearest name is {nearest}")


def _is_service_link(name: str, value: str) -> bool:
    # If there is a Service named "relay", Kubernetes sets RELAY_SERVICE_HOST, RELAY_PORT=tcp://... in every pod.
    return bool(_SERVICE_LINK_NAME.search(name) or _SERVICE_LINK_VALUE.match(value))


def _fill(group: str, given: Mapping[str, str]) -> SettingsGroup:
    variables = {setting.field: name for name, setting in BY_VARIABLE.items() if setting.group == group}
    texts = {field: given[name] for field, name in variables.items() if name in given}
    try:
        return GROUPS[group].model_validate(texts)
    except ValidationError as error:
        name = variables[str(error.errors(include_context=False)[0]["loc"][0])]
        raise _refusal(name, given[name]) from None


def _refuse_contradictions(settings: Settings, given: Mapping[str, str]) -> None:
    if found := find_contradiction(settings.nats):
        name = variable_of(found.field).name
        raise ConfigurationError(name, _shown(name, given.get(name, "")), found.allowed)
    delivery = settings.delivery
    if delivery.backoff_max_s < delivery.backoff_initial_s:
        raise _refusal("RELAY_BACKOFF_MAX", as_text(delivery.backoff_max_s))


def _refusal(name: str, value: str) -> ConfigurationError:
    return ConfigurationError(name, _shown(name, value), BY_VARIABLE[name].variable.allowed)


def _shown(name: str, value: str) -> str:
    # These values may hold a secret: an address, and a file's content given in place of its path.
    if name.endswith(("_CREDS", "_FILE")) and (len(value) > _LONGEST_PATH or not value.isprintable()):
        return "***"
    if name.endswith("_URL") and "@" in value:
        return "***@" + value.rpartition("@")[2]
    return "***" if value and name.endswith(("_TOKEN", "_PASSWORD")) else value
