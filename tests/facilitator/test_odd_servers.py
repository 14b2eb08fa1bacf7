"""Servers that break the protocol of WebSockets, or are none: what the error says, and who has closed."""

import re
import ssl

import pytest
from authority import Authority
from tcp_server import tcp_server
from test_websocket import conversation, opened, received
from websockets.frames import CloseCode, Frame, Opcode

from relay.facilitator.websocket import CannotConnect, ConnectionClosed

_CUT_OFF = b"the database is away, \xc3"
"""The reason of a close frame that was cut off in the middle of a character."""


def close_frame(code: int, reason: bytes) -> bytes:
    return Frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason).serialize(mask=False)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "did not receive a valid HTTP response: .*SSH-2.0-OpenSSH_9.6"),
        (b"HTTP/1.0 200 OK\r\n\r\n", "did not receive a valid HTTP response: .*HTTP/1.0"),
        (b"\x1b[31m\r\n", r"did not receive a valid HTTP response: [ -~]*$"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", "begins with 'HTTP/1.1 302 Found', is not complete yet"),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\nbad",
            "'HTTP/1.1 502 Bad Gateway', is not complete yet",
        ),
        (b"\x1b[31mno line", r"which begins with '\\x1b\[31mno line', is not complete yet"),
    ],
)
async def test_no_answer_that_ends(answer, told):
    """What a server says that is no WebSocket, or does not end what it says, is in the error, without escape codes."""

    async def converse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()  # until the client closes

    async with tcp_server(converse) as port:
        with pytest.raises(CannotConnect, match=told):
            await opened(f"ws://127.0.0.1:{port}/", open_timeout_s=0.3)


async def test_an_extension_that_nobody_asked_for():
    """The error says what is wrong with the answer."""

    def compress(_connection, _request, response):
        response.headers["Sec-WebSocket-Extensions"] = "permessage-deflate"

    with pytest.raises(CannotConnect, match="names an extension or a subprotocol, and we have asked for none"):
        async with conversation(None, process_response=compress):
            pass


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (close_frame(1011, b"\x1b[31m"), CloseCode.INTERNAL_ERROR, r"closed with 1011 \\x1b\[31m"),
        (b"\x88\x00", CloseCode.NO_STATUS_RCVD, "closed with 1005"),
        (close_frame(1011, _CUT_OFF), CloseCode.PROTOCOL_ERROR, "given up: the reason in its close frame is not UTF-8"),
        (close_frame(999, b""), CloseCode.PROTOCOL_ERROR, "given up: invalid status code"),
        (b"\xc1\x02{}", CloseCode.PROTOCOL_ERROR, "given up: reserved bits must be 0"),
        (b"\x01\x01{" + close_frame(1001, b""), CloseCode.GOING_AWAY, "closed with 1001"),
        (b"", None, "dropped without a close frame"),
    ],
)
async def test_who_has_closed(sent, code, told):
    """It is told whether the other side has closed, or broke the protocol so that we had to.

    A reason that was cut off is no complaint about a message of ours, although 1007 is the code for it.
    """

    async def converse(connection):
        connection.transport.write(sent)
        if not sent:
            connection.transport.abort()
        await connection.wait_closed()

    async with conversation(converse) as websocket:
        with pytest.raises(ConnectionClosed) as ended:
            await received(websocket, 1)
    assert (code, "given up" in told) == (ended.value.close and ended.value.close.code, ended.value.ours)
    assert re.fullmatch(told, str(ended.value))


async def test_a_certificate_that_is_renewed(tmp_path, monkeypatch):
    """A certificate that has expired is named; the next attempt goes by what server and machine have then."""
    authority, cert, key = Authority(tmp_path, "authority"), tmp_path / "cert", tmp_path / "key"
    trusted = tmp_path / "trusted"
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    trusted.write_bytes(authority.ca.read_bytes())

    async def connected() -> None:
        served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        served.load_cert_chain(cert, key)
        async with conversation(lambda connection: connection.wait_closed(), ssl=served):
            pass

    authority.issue(cert, key, days=-1)
    with pytest.raises(CannotConnect, match="certificate has expired"):
        await connected()
    successor = Authority(tmp_path, "successor")
    successor.issue(cert, key)
    with pytest.raises(CannotConnect, match="unable to get local issuer certificate"):
        await connected()
    trusted.write_bytes(successor.ca.read_bytes())
    await connected()


async def test_fragments_between_pings_and_pongs():
    """A message in fragments arrives whole, also byte by byte, with pings and unasked pongs in between."""

    async def converse(connection):
        parts = [b"\x01\x01{", b"\x89\x03abc", b"\x00\x00", b"\x8a\x02ab", b"\x80\x01}"]
        for byte in b"".join(parts):
            connection.transport.write(bytes([byte]))
        await connection.wait_closed()

    async with conversation(converse) as websocket:
        assert [b"{}"] == await received(websocket, 1)
