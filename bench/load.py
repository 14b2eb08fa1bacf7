"""The updates of the benchmarks, and the clock that they carry.

The time at which an update was due is in its metadata, as `sent_ns=` and 19 digits, which every serialiser keeps as it
is. The clock is `time.monotonic_ns`, which all processes of a machine share.
"""

import json
from random import Random
from typing import Any, Final

MARK: Final = b"sent_ns="
_DIGITS: Final = 19
_BODY: Final = (
    b'{"message_type":"V0JobStatusUpdate","uuid":"%b","status":"%b","metadata":{"miner_response":'
    b'{"docker_process_stdout":"sent_ns=%019d' + b"." * 35 + b'","docker_process_stderr":"%b"}}}'
)
_LINE: Final = b"2026-11-28 12:00:00 step 0123456789 loss 0.123456789 accuracy 0.987654321 of this batch\\n"
_VERSION_4: Final = 4 << 76
_VARIANT: Final = 2 << 62
_RANDOM_BITS: Final = (1 << 128) - 1 - (0xF << 76) - (3 << 62)


def job_uuids(n: int, seed: int = 0) -> list[str]:
    """The UUIDs of the first `n` jobs: version 4, lower case. With the same seed a larger `n` only adds jobs."""
    rng = Random(seed)
    return [_spell(rng.getrandbits(128) & _RANDOM_BITS | _VERSION_4 | _VARIANT) for _ in range(n)]


def body(uuid: str, sent_ns: int, status: str = "accepted", filler: bytes = b"") -> bytes:
    """An update as a job runner sends it, about 250 bytes, and `filler` as the standard error of its process."""
    return _BODY % (uuid.encode(), status.encode(), sent_ns, filler)


def large_filler(size_bytes: int) -> bytes:
    """So many bytes of output, as executors send it: lines of text, within a JSON string."""
    return _LINE * (size_bytes // len(_LINE))


def payload(uuid: str, sent_ns: int) -> dict[str, Any]:
    """The same as `body`, for transports that serialise it themselves."""
    return json.loads(body(uuid, sent_ns))


def sent_ns_of(update: bytes) -> int | None:
    """When the update was due, or None if it is not from a benchmark."""
    at = update.find(MARK)
    if at < 0:
        return None
    at += len(MARK)
    return int(update[at : at + _DIGITS])


def _spell(number: int) -> str:
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
