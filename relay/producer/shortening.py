"""Shortening an update that is too large, so that at least its status gets through. Without I/O.

Outputs of processes and messages are cut first, in the middle. If that is not enough, artifacts are left out, and at
last every member that the Facilitator does not need. The member `shortened` of the metadata says what was left out.
"""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:  # see __init__.py
    from relay.contract.model import JobStatusUpdate

_OUTPUTS: Final = ("docker_process_stdout", "docker_process_stderr")
_CUT: Final = (*_OUTPUTS, "message", "reason")
_DETAILS: Final[dict[str, tuple[str, ...]]] = {
    "miner_response": _OUTPUTS,
    "job_rejection_details": ("rejected_by", "reason", "message"),
    "job_failure_details": ("reason", "stage", "message", "docker_process_exit_status", *_OUTPUTS),
    "horde_failure_details": ("reported_by", "reason", "message"),
    "streaming_details": ("streaming_server_cert", "streaming_server_address", "streaming_server_port"),
}
"""What is kept at last."""
_MARKER: Final = "\n[... {} of {} characters are left out here, because the update was too large ...]\n"
_LEAST_BYTES: Final = 256
"""To how many bytes a text is cut at most. The marker fits in, and a little of both ends."""
_NAMED: Final = 20
_SHOWN: Final = 3
_SHORTENED: Final = "shortened"

_Text = tuple[dict[str, Any], str]
"""A member of an object."""


def shortened(update: "JobStatusUpdate", max_bytes: int) -> bytes | None:
    """The update as JSON of at most `max_bytes`, shortened as little as is needed; None if that cannot be done."""
    content = update.model_dump(mode="json")
    metadata: dict[str, Any] = content["metadata"] or {}
    stages: tuple[Callable[[dict[str, Any]], None], ...] = (lambda _: None, _without_artifacts, _least)
    for stage in stages:
        stage(metadata)
        texts = [*_texts(metadata)]
        sizes = [_size(members[name]) for members, name in texts]
        room = max_bytes - (_size(content) - sum(sizes))
        if (limit := _fair_limit(sizes, room)) >= _LEAST_BYTES:
            for members, name in texts:
                members[name] = _cut(members[name], limit)
            return _json(content)
    return None


def largest_parts(update: "JobStatusUpdate") -> str:
    """The members of an update that have most of its bytes, for error texts: `miner_response.artifacts 812 bytes`."""
    metadata: dict[str, Any] = update.model_dump(mode="json")["metadata"] or {}
    parts: list[tuple[int, str]] = []
    for name, value in metadata.items():
        members = _members(metadata, name) or {"": value}
        parts += [(_size(part), f"{name}.{member}".rstrip(".")) for member, part in members.items() if part is not None]
    largest = sorted(parts, reverse=True)[:_SHOWN]
    return ", ".join(f"{name} {size} bytes" for size, name in largest) or "none, because the metadata is empty"


def _members(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    value = metadata.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _texts(metadata: dict[str, Any]) -> Iterator[_Text]:
    for details in _DETAILS:
        members = _members(metadata, details)
        yield from ((members, name) for name in _CUT if members.get(name))


def _without_artifacts(metadata: dict[str, Any]) -> None:
    response = _members(metadata, "miner_response")
    if artifacts := response.pop("artifacts", None):
        _note(metadata, "artifacts", artifacts)


def _least(metadata: dict[str, Any]) -> None:
    """Leave out everything but the members of _DETAILS."""
    left_out: list[str] = []
    for name in [name for name in metadata if name not in {*_DETAILS, _SHORTENED}]:
        left_out.append(name)
        del metadata[name]
    for name, kept in _DETAILS.items():
        members = _members(metadata, name)
        further = [member for member in members if member not in kept]
        left_out += [f"{name}.{member}" for member in further if members.pop(member) is not None]
    _note(metadata, "members", left_out)


def _note(metadata: dict[str, Any], kind: str, names: dict[str, Any] | list[str]) -> None:
    if names:
        note = {"names": [name[:100] for name in names][:_NAMED], "count": len(names)}
        metadata[_SHORTENED] = {**_members(metadata, _SHORTENED), kind: note}


def _fair_limit(sizes: list[int], room: int) -> int:
    """How large each text may be, so that all fit into `room`: small ones stay whole. 0 if not even they would fit."""
    if sum(sizes) <= room:
        return max([*sizes, _LEAST_BYTES])
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > room:
            return max(0, room // left)
        room -= size
        left -= 1
    return 0


def _cut(text: str, max_bytes: int) -> str:
    """The text with so much left out in its middle that it has at most `max_bytes` as JSON."""
    if _size(text) <= max_bytes:
        return text
    half = (max_bytes - _size(_MARKER.format(len(text), len(text)))) // 2
    head = _longest(len(text), lambda length: text[:length], half)
    tail = _longest(len(text), lambda length: text[len(text) - length :], half)
    marker = _MARKER.format(len(text) - head - tail, len(text))
    return text[:head] + marker + text[len(text) - tail :]


def _longest(most: int, part: Callable[[int], str], max_bytes: int) -> int:
    """The greatest length, at most `most`, for which the part of that length has at most `max_bytes` as JSON."""
    low, high = 0, min(most, max(0, max_bytes))
    while low < high:
        middle = (low + high + 1) // 2
        if _size(part(middle)) <= max_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _size(value: Any) -> int:
    return len(_json(value))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
