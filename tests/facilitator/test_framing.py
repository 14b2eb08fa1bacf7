"""The frames of the hot path, compared with what `websockets` makes and reads."""

from hypothesis import event, example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from relay.facilitator.framing import MASK_BYTES, ShortTexts, framed

ADDRESS = parse_uri("ws://127.0.0.1:1/")
SIZES = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000]


def read(protocol, data):
    protocol.receive_data(data)
    return [event for event in protocol.events_received() if isinstance(event, Frame)]


def client():
    return ClientProtocol(ADDRESS, state=State.OPEN)


def texts_of(frames):
    return [(frame.opcode, frame.fin, bytes(frame.data)) for frame in frames]


sizes = st.sampled_from(SIZES) | st.integers(0, 200)


@given(sizes=st.lists(sizes, max_size=4), masks=st.binary(min_size=4 * MASK_BYTES, max_size=4 * MASK_BYTES))
def test_a_server_reads_the_texts_that_were_framed(sizes, masks):
    texts = [bytes(range(256)) * (size // 256) + bytes(size % 256) for size in sizes]
    frames = read(ServerProtocol(state=State.OPEN), b"".join(framed(texts, masks)))
    assert [(Opcode.TEXT, True, text) for text in texts] == texts_of(frames)


@st.composite
def readings(draw):
    """What a server sends, mostly short texts, in the pieces in which it is read."""
    text = st.builds(lambda size: Frame(Opcode.TEXT, b"t" * size), st.sampled_from([0, 2, 34, 125]))
    other = st.builds(
        Frame, st.sampled_from([Opcode.TEXT, Opcode.PING, Opcode.PONG, Opcode.BINARY]), sizes.map(bytes)
    ).filter(lambda frame: len(frame.data) < 126 or frame.opcode < Opcode.CLOSE)
    frames = draw(st.lists(text | text | other, max_size=6))
    data = b"".join(frame.serialize(mask=False) for frame in frames)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(pieces=readings())
@example(pieces=[b"\x81\x02hi\x81\x02hi"])
@example(pieces=[b"\x81\x02hi\x81", b"\x02hi", b"\x81\x02hi"])
@example(pieces=[b"\x89\x02", b"\x81\x00", b"\x81\x02hi"])
@example(pieces=[b"\x81\x7e\x00", b"\x81" + b"t" * 129, b"\x81\x02hi"])
def test_with_short_texts_cut_out_the_same_messages_are_read(pieces):
    """Also if a frame looks like another one from its middle on."""
    short_texts, alone, beside = ShortTexts(), client(), client()
    expected, actual = [], []
    for piece in pieces:
        expected += texts_of(read(alone, piece))
        messages = short_texts.cut(piece)
        event("cut" if messages else "left to websockets")
        if messages is None:
            actual += texts_of(read(beside, piece))
        else:
            actual += [(Opcode.TEXT, True, message) for message in messages]
    assert expected == actual


def test_texts_that_are_short_and_whole_are_cut_out():
    frame = Frame(Opcode.TEXT, b'{"status":"success","errors":[]}').serialize(mask=False)
    assert [b'{"status":"success","errors":[]}'] * 3 == ShortTexts().cut(frame * 3)


def test_what_came_with_the_end_of_the_handshake_counts():
    """Here it is the first half of a frame, of which the second half looks like a text."""
    short_texts = ShortTexts()
    short_texts.follow(b"\x82\x04")
    assert short_texts.cut(b"\x81\x02hi") is None
    assert short_texts.cut(b"\x81\x02hi") == [b"hi"]
