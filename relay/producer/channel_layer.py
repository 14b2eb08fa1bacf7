"""Reading updates from messages of the channel layer."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from relay.contract.model import JobStatusUpdate
from relay.contract.text import describe
from relay.producer.errors import InvalidUpdate


def update_of(message: Mapping[str, Any]) -> JobStatusUpdate:
    """The update in a channel layer message: `{"type": "job_status_update", "payload": {...}}`, or only the payload.

    Raises InvalidUpdate, which names each wrong field.
    """
    try:
        payload = message.get("payload", message) if message.get("type") == "job_status_update" else message
        return JobStatusUpdate.model_validate_json(to_json(payload))
    except ValidationError as error:
        problems = "; ".join(f"{_place(each['loc'])}: {each['msg']}" for each in error.errors(include_url=False))
        raise InvalidUpdate(problems) from None
    except (AttributeError, ValueError) as error:
        raise InvalidUpdate(f"the message cannot be read: {describe(error)}") from None


def _place(path: tuple[int | str, ...]) -> str:
    return ".".join(map(str, path)) or "the update"
