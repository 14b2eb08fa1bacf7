"""One dead letter: why it is there, what to do, its history, headers and body."""

import datetime as dt
from typing import Final

from nicegui import ui

from relay.console.acting import act_on, action_card
from relay.console.actions import Actions
from relay.console.frame import body_text, card, connected, failed, fields, frame, problem
from relay.console.watching import Watching
from relay.contract.errors import RelayError
from relay.contract.subjects import DLQ_STREAM
from relay.contract.text import how_many
from relay.dead_letters import stream
from relay.dead_letters.description import describe_letter
from relay.dead_letters.selection import Selection
from relay.dead_letters.stored import StoredDeadLetter, number_of

_HEX_BYTES: Final = 16_384
_HEX_WIDTH: Final = 16


async def show_letter(watching: Watching, actions: Actions, wanted: str) -> None:
    """Build the page. `wanted`: the sequence, as it is written in the address."""
    sequence = number_of(wanted) or 0
    with frame(watching, f"Dead letter {sequence or ''}", "/dead-letters"):
        action_card(actions)
        if not sequence:
            problem(f"{wanted[:80]!a} is not the number of a dead letter.")
            return
        with card(f"Dead letter {sequence} in {DLQ_STREAM}"):
            letter = await _found(watching, sequence)
            if letter is None:
                return
            known = [(name, value) for name, value in describe_letter(letter, dt.datetime.now(dt.UTC)) if value]
            fields(known, job=letter.job)
            if watching.rights.act:
                with ui.row():
                    act_on(actions, lambda: Selection(sequences=(sequence,)), "this one")
        with card("Body"):
            body_text(letter.body)
        with card("All headers, as they are stored"):
            fields(sorted(letter.headers.items()))
        with card("Body in hexadecimal"):
            ui.label(hexadecimal(letter.body[:_HEX_BYTES])).classes("mono")
            if len(letter.body) > _HEX_BYTES:
                more = len(letter.body) - _HEX_BYTES
                ui.label(f"... and {how_many(f'{more:,}', 'byte')} more")


async def _found(watching: Watching, sequence: int) -> StoredDeadLetter | None:
    if (client := connected(watching)) is None:
        return None
    try:
        letter = await stream.find(client, sequence)
    except RelayError as error:
        failed(watching, error)
        return None
    if letter is None:
        problem("It is not there: it was replayed or purged, or there never was one.")
    return letter


def hexadecimal(body: bytes) -> str:
    """The bytes as lines of offset, hexadecimal digits and ASCII."""
    lines: list[str] = []
    for offset in range(0, len(body), _HEX_WIDTH):
        part = body[offset : offset + _HEX_WIDTH]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)  # noqa: PLR2004 - ASCII
        lines.append(f"{offset:06x}  {part.hex(' '):{3 * _HEX_WIDTH}} {text}")
    return "\n".join(lines)
