"""How large an update may be."""

from typing import Final

MAX_FRAME_BYTES: Final = 16_777_216
"""The largest frame that the Facilitator takes; it closes the connection with 1009 on a larger one."""
