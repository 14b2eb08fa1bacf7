"""What a NATS user may do, tried without any effect.

A server refuses what is not permitted before it looks at what was sent. So everything is sent in a form that has no
effect where it is permitted: requests that nobody can parse, questions that want no answer, acknowledgements of a
sequence that no update has, publishes for a stream of another name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.nats.frames import FrameClient

UNREADABLE: Final = b"{"
"""As the body of a request of JetStream's API: an error, if anybody were to answer. (An empty pull would be served.)"""
ELSEWHERE: Final = {"Nats-Expected-Stream": "relay-doctor"}
"""On a publish: the stream that captures the subject refuses it, because it has another name."""


@dataclass(frozen=True, slots=True)
class Need:
    """Something that somebody must be allowed to do; `body` and `headers` are sent, and no answer is asked for."""

    subject: str
    subscribe: bool = False
    body: bytes = UNREADABLE
    headers: dict[str, str] | None = None

    def __str__(self) -> str:
        return f"{'subscribe to' if self.subscribe else 'publish on'} {self.subject}"


async def refused(client: FrameClient, needs: Sequence[Need]) -> list[Need]:
    """Those of `needs` that the server refuses: tried all at once, and one by one if anything was refused.

    Nobody else may use the connection meanwhile: a refusal shows as its last error. Raises nats.errors.Error if the
    connection does not last that long.
    """
    if not await _refuses(client, needs):
        return []
    return [need for need in needs if await _refuses(client, [need])]


async def _refuses(client: FrameClient, needs: Sequence[Need]) -> bool:
    before = client.last_error
    for need in needs:
        if need.subscribe:
            subscription = await client.subscribe(need.subject)
            await subscription.unsubscribe()
        else:
            await client.publish(need.subject, need.body, headers=need.headers)
    await client.flush()  # refusals come before its PONG
    return client.last_error is not before
