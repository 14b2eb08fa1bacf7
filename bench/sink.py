"""A Facilitator that is as fast as possible: it takes every update, answers in order, and records when it came.

    python -m bench.sink

It accepts every authentication, checks nothing and stores nothing, so that it is never the bottleneck. The protocol on
stdin and stdout is that of `bench.arrivals`.
"""

from typing import Final

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from bench.arrivals import Arrivals, answer, run
from bench.load import sent_ns_of

_REPLY: Final = b'{"status":"success","errors":[]}'
_REPLY_FRAME: Final = bytes((0x81, len(_REPLY))) + _REPLY
"""A whole text frame: a server does not mask, so it is always the same bytes."""
_HEARTBEAT: Final = b'"V0Heartbeat"'
_HOST: Final = "127.0.0.1"


class Conversation(WSListener):
    """One connection. What was read together is answered in one write."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._record = arrivals.record
        self._unanswered = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            self._take(frame.get_payload_as_bytes())
        elif frame.msg_type is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        elif frame.msg_type is WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        if frame.last_in_buffer and self._unanswered:
            transport.underlying_transport.write(_REPLY_FRAME * self._unanswered)
            self._unanswered = 0

    def _take(self, message: bytes) -> None:
        sent_ns = sent_ns_of(message)
        if sent_ns is not None:
            self._record(sent_ns)
            self._unanswered += 1
        elif _HEARTBEAT not in message:  # authentication, or the probe of a client that needs none
            self._unanswered += 1


async def main() -> None:
    arrivals = Arrivals()

    def converse(_request: WSUpgradeRequest) -> WSListener:
        return Conversation(arrivals)

    # Pings are answered here. Otherwise a ping at the end of a read would leave the updates before it waiting.
    server = await ws_create_server(converse, _HOST, 0, enable_auto_pong=False)
    port = server.sockets[0].getsockname()[1]
    # Not `async with server`: that would wait until the clients have closed their connections.
    await answer(arrivals, url=f"ws://{_HOST}:{port}/ws/v0/")
    server.close()


if __name__ == "__main__":
    run(main)
