"""The WebSocket frames of the hot path: text messages out, and short text messages in.

`websockets` does the same frame by frame, with a dozen calls for each. It goes on doing everything else.
"""

import struct
from collections.abc import Sequence
from typing import Final

from websockets.frames import apply_mask  # pyright: ignore[reportPrivateImportUsage] - in C if possible

MASK_BYTES: Final = 4
_WHOLE_TEXT: Final = 0x81
"""The first byte of a text message in one frame."""
_MASKED: Final = 0x80
_TWO_BYTES: Final = 126
_EIGHT_BYTES: Final = 127
"""In place of a length: it follows, in so many bytes."""
_FOLLOWING: Final = {_TWO_BYTES: 2, _EIGHT_BYTES: 8}
_SHORT_HEAD: Final = struct.Struct("!BB4s").pack
_MEDIUM_HEAD: Final = struct.Struct("!BBH4s").pack
_LONG_HEAD: Final = struct.Struct("!BBQ4s").pack


def framed(texts: Sequence[bytes], masks: bytes) -> list[bytes]:
    """The frames of these text messages, head and body in turn; `masks` has 4 random bytes for each."""
    frames: list[bytes] = []
    for number, text in enumerate(texts):
        mask = masks[number * MASK_BYTES : (number + 1) * MASK_BYTES]
        size = len(text)
        if size < _TWO_BYTES:
            head = _SHORT_HEAD(_WHOLE_TEXT, _MASKED | size, mask)
        elif size < 1 << 16:
            head = _MEDIUM_HEAD(_WHOLE_TEXT, _MASKED | _TWO_BYTES, size, mask)
        else:
            head = _LONG_HEAD(_WHOLE_TEXT, _MASKED | _EIGHT_BYTES, size, mask)
        frames += head, apply_mask(text, mask)
    return frames


class ShortTexts:
    """Cuts short text messages out of what was read, and keeps track of where frames end.

    Everything that is read after the handshake must be passed to `cut` or `follow`, in order.
    """

    def __init__(self) -> None:
        self._head = b""
        """The beginning of a frame of which not even the length has come."""
        self._missing = 0
        """How many bytes of the latest frame are still to come."""

    def cut(self, data: bytes) -> list[bytes] | None:
        """The messages in `data` if it is whole frames of short text messages; None if it is anything else.

        Such other data is for `websockets`. The messages must not be used if another one was begun in fragments.
        """
        if self._head or self._missing:
            self.follow(data)
            return None
        messages: list[bytes] = []
        at, size = 0, len(data)
        while at + 1 < size and data[at] == _WHOLE_TEXT and data[at + 1] < _TWO_BYTES:
            body = at + 2
            at = body + data[at + 1]
            messages.append(data[body:at])
        if at == size:
            return messages
        self.follow(data)
        return None

    def follow(self, data: bytes) -> None:
        """`data` is for `websockets`: find out whether its last frame is complete."""
        data = self._head + data
        self._head = b""
        at = self._missing
        while at < len(data):
            end = _end_of_frame(data, at)
            if end is None:
                self._head, at = data[at:], len(data)
            else:
                at = end
        self._missing = at - len(data)


def _end_of_frame(data: bytes, start: int) -> int | None:
    """Where the frame at `start` ends, which may be after the end of `data`; None if its length has not come yet."""
    if len(data) < start + 2:
        return None
    size = data[start + 1] & ~_MASKED
    body = start + 2 + _FOLLOWING.get(size, 0)
    if len(data) < body:
        return None
    if size in _FOLLOWING:
        size = int.from_bytes(data[start + 2 : body])
    return body + size + (MASK_BYTES if data[start + 1] & _MASKED else 0)
