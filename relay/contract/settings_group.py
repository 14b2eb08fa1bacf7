"""What every group of settings is made of."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, SecretStr

Secret = SecretStr | None
WHOLE: Final = "a whole number from"
"""The beginning of what an integer field allows, in words."""


@dataclass(frozen=True, slots=True)
class Variable:
    """The environment variable that fills a field: what it allows and what it is for, each in words."""

    name: str
    allowed: str
    description: str


class SettingsGroup(BaseModel):
    """Frozen values that belong together; each field is annotated with its Variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def split_at_commas(value: Any) -> Any:
    """The parts of a text, without blanks around them; any other value as it is."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
