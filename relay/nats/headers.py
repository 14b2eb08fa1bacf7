"""The headers of a message, as they travel: a line `NATS/1.0`, then one line `Name: value` for each."""

import re
from typing import Final

STATUS: Final = "Status"
"""What the server says in the first line is given under these two names, as clients do."""
DESCRIPTION: Final = "Description"
_VERSION: Final = b"NATS/1.0"
_PLAIN: Final = re.compile(rb"NATS/1\.0\r\n(?:[!-9;-~]+: (?:[!-~]+(?: [!-~]+)*)?\r\n)+\r\n").fullmatch
"""ASCII, single blanks, none at either end of a value: read in a third of the time."""


def parse_headers(block: bytes) -> dict[str, str]:
    """The headers in a block, as nats-py reads them: of a name that comes twice the last value counts.

    Lines that are no headers are left out; bytes that are no UTF-8 become U+FFFD. Raises nothing.
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
