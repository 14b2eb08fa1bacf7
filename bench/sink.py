"""A Facilitator that is as fast as possible: it takes every update, answers in order, and records when it came.

    python -m bench.sink [PORT [BYTES_PER_S [RECORDED_BYTES]]]

It accepts every authentication, checks nothing and stores nothing, so that it is never the bottleneck. With BYTES_PER_S
it handles updates one after another, each for as long as its bytes take at that speed, as the real Facilitator does.
With RECORDED_BYTES it records only updates of at most so many bytes.
The protocol on stdin and stdout is that of `bench.arrivals`.
"""

import asyncio
import sys
from typing import Final

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from bench.arrivals import Arrivals, answer, run
from bench.load import sent_ns_of

_REPLY: Final = b'{"status":"success","errors":[]}'
_REPLY_FRAME: Final = bytes((0x81, len(_REPLY))) + _REPLY
"""A whole text frame: a server does not mask, so it is always the same bytes."""
_HEARTBEAT: Final = b'"V0Heartbeat"'
_HOST: Final = "127.0.0.1"
_DEFAULTS: Final = (0, 0, sys.maxsize)
_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024 + 1024


class Conversation(WSListener):
    """One connection. What was read together is answered in one write, unless each update takes its time."""

    def __init__(self, arrivals: Arrivals, bytes_per_s: float | None, recorded_bytes: int) -> None:
        self._record = arrivals.record
        self._bytes_per_s = bytes_per_s
        self._recorded_bytes = recorded_bytes
        self._unanswered = 0
        self._free_s = 0.0
        """When the last update that was read will have been handled, on the event loop's clock."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            self._take(transport, frame.get_payload_as_bytes())
        elif frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        elif frame.msg_type is WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        if frame.last_in_buffer and self._unanswered:
            transport.underlying_transport.write(_REPLY_FRAME * self._unanswered)
            self._unanswered = 0

    def _take(self, transport: WSTransport, message: bytes) -> None:
        sent_ns = sent_ns_of(message)
        if sent_ns is not None and self._bytes_per_s is not None:
            loop = asyncio.get_running_loop()
            self._free_s = max(self._free_s, loop.time()) + len(message) / self._bytes_per_s
            loop.call_at(self._free_s, self._handled, transport, sent_ns)
        elif sent_ns is not None:
            if len(message) <= self._recorded_bytes:
                self._record(sent_ns)
            self._unanswered += 1
        elif _HEARTBEAT not in message:  # authentication, or the probe of a client that needs none
            self._unanswered += 1

    def _handled(self, transport: WSTransport, sent_ns: int) -> None:
        if not transport.is_disconnected:
            self._record(sent_ns)
            transport.underlying_transport.write(_REPLY_FRAME)


async def main() -> None:
    arrivals = Arrivals()
    port, bytes_per_s, recorded_bytes = (*map(int, sys.argv[1:]), *_DEFAULTS[len(sys.argv) - 1 :])

    def converse(_request: WSUpgradeRequest) -> WSListener:
        return Conversation(arrivals, bytes_per_s or None, recorded_bytes)

    # Pings are answered here. Otherwise a ping at the end of a read would leave the updates before it waiting.
    server = await ws_create_server(converse, _HOST, port, enable_auto_pong=False, max_frame_size=_MAX_FRAME_BYTES)
    port = server.sockets[0].getsockname()[1]
    # Not `async with server`: that would wait until the clients have closed their connections.
    await answer(arrivals, url=f"ws://{_HOST}:{port}/ws/v0/")
    server.close()


if __name__ == "__main__":
    run(main)
