"""All settings in one table: for the documentation, and to find the field that an environment variable fills."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, cast, get_args

from pydantic import SecretStr

from relay.contract.settings import Settings
from relay.contract.settings_group import SettingsGroup, Variable


class SettingRow(NamedTuple):
    """One line of the configuration table; `default` is spelled as in the environment, empty when there is none."""

    variable: str
    default: str
    allowed: str
    description: str


GROUPS: Final[Mapping[str, type[SettingsGroup]]] = {
    name: cast("type[SettingsGroup]", info.annotation) for name, info in Settings.model_fields.items()
}
"""The class of each group, by its name in Settings."""


class Setting(NamedTuple):
    """One field of one group of Settings."""

    group: str
    field: str
    default: Any
    variable: Variable
    secret: bool
    """Whether the value is a secret, such as a password. Then white space may be part of it."""


def _settings() -> Iterator[Setting]:
    for group, kind in GROUPS.items():
        for field, info in kind.model_fields.items():
            variable = next(mark for mark in info.metadata if isinstance(mark, Variable))
            yield Setting(group, field, info.default, variable, secret=SecretStr in get_args(info.annotation))


BY_VARIABLE: Final = {setting.variable.name: setting for setting in _settings()}
"""Every setting by the name of its environment variable, in the order of the groups."""


def settings_table() -> list[SettingRow]:
    """Every setting in the order of the groups, for docs/configuration.md."""
    return [
        SettingRow(name, as_text(setting.default), setting.variable.allowed, setting.variable.description)
        for name, setting in BY_VARIABLE.items()
    ]


def as_text(value: Any) -> str:
    """A value as one writes it into the environment; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
