"""Read the settings from environment variables with the prefix `RELAY_`, and from a `.env` file."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import SecretStr, ValidationError

from relay.contract.addresses import Unusable, parse_proxy, problem_of
from relay.contract.contradictions import find_contradiction, variable_of
from relay.contract.env_file import read_env_file
from relay.contract.errors import ConfigurationError
from relay.contract.settings import PROXY, Settings
from relay.contract.settings_group import SettingsGroup
from relay.contract.settings_table import BY_VARIABLE, GROUPS, as_text
from relay.contract.usual_proxy import usual_proxy

_PREFIX: Final = "RELAY_"
_LONGEST_PATH: Final = 255
_SERVICE_LINK_NAME: Final = re.compile(r"_SERVICE_(HOST|PORT)\b|_SERVICE_PORT_|_PORT_\d+_(TCP|UDP|SCTP)")
_SERVICE_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://")
_MISSPELT: Final = 0.85
"""How much alike two names are of which one is likely meant as the other, from 0 to 1."""


def load_settings(
    environ: Mapping[str, str] | None = None,
    env_file: str | Path | None = ".env",
    *,
    notice: Callable[[str], None] | None = None,
) -> Settings:
    """The settings that `environ` (the process's environment if None) and `env_file` give; `environ` wins.

    An empty variable counts as unset, and so does a missing file. White space around a value does not count. `notice`
    is called with a sentence for each value that is taken otherwise than it was written, or is likely a mistake.

    Raises ConfigurationError for the first variable that is unknown, has a value that is not allowed, or needs another
    one that is missing, and for a line of the file that cannot be read.
    """
    environ = dict(os.environ if environ is None else environ)
    notices: list[str] = []
    given = {name: value for name, value in (read_env_file(env_file, environ) | environ).items() if value}
    given = _as_meant(_settings_among(given, notices), notices)
    settings = Settings.model_validate({group: _fill(group, given) for group in GROUPS})
    settings = _with_usual_proxy(settings, environ)
    _refuse_contradictions(settings, given)
    if notice is not None:
        for each in notices:
            notice(each)
    return settings


def _with_usual_proxy(settings: Settings, environ: Mapping[str, str]) -> Settings:
    facilitator = settings.facilitator
    usual = usual_proxy(facilitator.url, environ) if facilitator.url and facilitator.proxy is None else None
    if usual is None:
        return settings
    try:
        parse_proxy(usual.url)
    except Unusable as error:
        allowed = f"{PROXY}; set RELAY_FACILITATOR_PROXY, or exclude the Facilitator with NO_PROXY"
        raise ConfigurationError(usual.variable, f"***@{usual.url.rpartition('@')[2]}", allowed, str(error)) from None
    with_proxy = facilitator.model_copy(update={"proxy": SecretStr(usual.url)})
    return settings.model_copy(update={"facilitator": with_proxy})


def concerns(name: str, prefix: str) -> bool:
    """Whether a variable's name begins with `prefix`, or is likely a misspelt name of a setting that does."""
    return name.startswith(prefix) or (name not in BY_VARIABLE and _nearest(name, _MISSPELT).startswith(prefix))


def without_line_ends(name: str, value: str, notices: list[str]) -> str:
    """A secret, as it was meant: without the line end that a file which it was copied from ends with."""
    trimmed = value.strip("\r\n")
    if trimmed != value:
        notices.append(f"{name} began or ended with a line end, which was removed")
    if trimmed != trimmed.strip():
        notices.append(f"{name} begins or ends with white space, which is taken as part of it")
    if len(trimmed) > 1 and trimmed[0] == trimmed[-1] and trimmed[0] in "\"'":
        notices.append(f"{name} is in quotation marks, which are taken as part of it")
    return trimmed


def _settings_among(given: Mapping[str, str], notices: list[str]) -> dict[str, str]:
    """The variables that are settings. Raises ConfigurationError for one that is likely meant as a setting."""
    found: dict[str, str] = {}
    for name, value in given.items():
        if name in BY_VARIABLE:
            if name.endswith("_PORT") and _SERVICE_LINK_VALUE.match(value):
                notices.append(f"{name}={value} is what Kubernetes sets beside a Service of that name; it is ignored")
            else:
                found[name] = value
        elif not _is_service_link(name, value) and (name.startswith(_PREFIX) or _nearest(name, _MISSPELT)):
            allowed = f"there is no such setting; the nearest name is {_nearest(name, 0)}"
            raise ConfigurationError(ascii(name)[1:-1], "***", allowed)
    return found


def _nearest(name: str, likeness: float) -> str:
    """The setting whose name is most like `name`, also if that is not in capitals; empty if none is so much like it."""
    if not name.upper().startswith(_PREFIX):
        return ""
    return next(iter(difflib.get_close_matches(name.upper(), BY_VARIABLE, n=1, cutoff=likeness)), "")


def _as_meant(given: Mapping[str, str], notices: list[str]) -> dict[str, str]:
    meant = {
        name: without_line_ends(name, value, notices) if BY_VARIABLE[name].secret else value.strip()
        for name, value in given.items()
    }
    return {name: value for name, value in meant.items() if value}


def _is_service_link(name: str, value: str) -> bool:
    # If there is a Service named "relay", Kubernetes sets RELAY_SERVICE_HOST, RELAY_PORT=tcp://... in every pod.
    return bool(_SERVICE_LINK_NAME.search(name) or _SERVICE_LINK_VALUE.match(value))


def _fill(group: str, given: Mapping[str, str]) -> SettingsGroup:
    variables = {setting.field: name for name, setting in BY_VARIABLE.items() if setting.group == group}
    texts = {field: given[name] for field, name in variables.items() if name in given}
    if not_text := [name for name in variables.values() if not _is_utf8(given.get(name, ""))]:
        raise ConfigurationError(not_text[0], "***", "text in UTF-8")
    try:
        return GROUPS[group].model_validate(texts)
    except ValidationError as error:
        name = variables[str(error.errors(include_context=False)[0]["loc"][0])]
        raise _refusal(name, given[name], problem_of(error)) from None


def _is_utf8(value: str) -> bool:
    # Bytes of the environment that are not UTF-8 become lone surrogates, and pydantic raises on these.
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_contradictions(settings: Settings, given: Mapping[str, str]) -> None:
    if found := find_contradiction(settings.nats):
        name = variable_of(found.field).name
        raise ConfigurationError(name, _shown(name, given.get(name, "")), found.allowed)
    delivery = settings.delivery
    if delivery.backoff_max_s < delivery.backoff_initial_s:
        raise _refusal("RELAY_BACKOFF_MAX", as_text(delivery.backoff_max_s))


def _refusal(name: str, value: str, problem: str = "") -> ConfigurationError:
    return ConfigurationError(name, _shown(name, value), BY_VARIABLE[name].variable.allowed, problem)


def _shown(name: str, value: str) -> str:
    # These values may hold a secret: an address, and a file's content given in place of its path.
    if name.endswith(("_CREDS", "_FILE")) and (len(value) > _LONGEST_PATH or not value.isprintable()):
        return "***"
    if name.endswith(("_URL", "_PROXY")) and "@" in value:
        return "***@" + value.rpartition("@")[2]
    return "***" if value and name.endswith(("_TOKEN", "_PASSWORD", "_HEADERS")) else value
