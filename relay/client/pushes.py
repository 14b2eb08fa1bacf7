"""What the Facilitator pushes, as values, and settling it."""

from collections.abc import Awaitable
from typing import Any, Final, Literal, Protocol

import msgspec

from relay.nats.ack_subject import parse_ack_subject

_ACK: Final = b"+ACK"
_IN_PROGRESS: Final = b"+WPI"
_NAK: Final = b"-NAK"
_TERM: Final = b"+TERM"
_NS: Final = 1_000_000_000


class RequestSignature(msgspec.Struct, frozen=True):
    """Who asks for the job, and the proof. Checking it is the business of whoever runs the job."""

    signature_type: str
    signatory: str
    timestamp_ns: int
    signature: str


class V2JobRequest(msgspec.Struct, frozen=True, tag_field="message_type", tag="V2JobRequest"):
    """A job that the Facilitator asks the validator to run. Further members are in the body."""

    uuid: str
    type: Literal["job.new"] = "job.new"
    signature: RequestSignature | None = None
    executor_class: str = ""
    docker_image: str = ""
    raw_script: str = ""
    args: list[str] = []
    env: dict[str, str] = {}
    use_gpu: bool = False
    volume: dict[str, Any] | None = None
    output_upload: dict[str, Any] | None = None
    artifacts_dir: str | None = None
    on_trusted_miner: bool = False


class V0JobCheated(msgspec.Struct, frozen=True, tag_field="message_type", tag="V0JobCheated"):
    """The Facilitator's report that a job was cheated on."""

    job_uuid: str
    type: Literal["job.cheated"] = "job.cheated"


class Settle(Protocol):
    def __call__(self, reply: str, word: bytes, *, confirmed: bool) -> Awaitable[None]: ...


_decode = msgspec.json.Decoder(V2JobRequest | V0JobCheated).decode


class JobRequest:
    """A message that the Facilitator pushed.

    Attributes:
        message: what it says; None if it has another type, or cannot be read: then `problem` says why.
        problem: empty if it could be read.
        body: the original bytes, as the Facilitator sent them. A signature is about these.
        deliveries: how often it was delivered, this time included.
        sequence: its place in the stream, the same at each delivery.
    """

    def __init__(self, body: bytes, reply: str, settle: Settle) -> None:
        self.message: V2JobRequest | V0JobCheated | None = None
        self.problem = ""
        self.body = body
        position = parse_ack_subject(reply.encode())
        self.sequence = position.sequence
        self.deliveries = position.deliveries
        self._reply = reply
        self._settle = settle
        try:
            self.message = _decode(body)
        except (ValueError, RecursionError) as error:
            self.problem = str(error)

    async def ack(self) -> None:
        """It is done: it does not come again. Waits until the server has confirmed that.

        Raises RequestUnsettled if it has not, within 5 seconds: then it may come again. Cancelling is safe.
        """
        await self._settle(self._reply, _ACK, confirmed=True)

    async def in_progress(self) -> None:
        """It is being worked on: it does not come again for another `ack_wait_s` seconds. Raises RequestUnsettled."""
        await self._settle(self._reply, _IN_PROGRESS, confirmed=False)

    async def redeliver(self, delay_s: float = 0) -> None:
        """It shall come again, after `delay_s` seconds, here or elsewhere. Raises RequestUnsettled."""
        await self._settle(self._reply, b'%b {"delay": %d}' % (_NAK, delay_s * _NS), confirmed=True)

    async def discard(self, reason: str) -> None:
        """It cannot be used: it does not come again; NATS tells `reason` to whoever watches. Raises as `ack`."""
        await self._settle(self._reply, _TERM + b" " + reason.encode(errors="replace"), confirmed=True)

    def __repr__(self) -> str:
        return f"JobRequest(sequence={self.sequence}, deliveries={self.deliveries}, message={self.message!r})"
