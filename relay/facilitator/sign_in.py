"""What to do when the Facilitator refuses the sign-in."""

from typing import Final

_REMEDY: Final = "check RELAY_FACILITATOR_HOTKEY_FILE, and that this validator is registered and active there"
_NOT_FOUND: Final = "auth.validator_not_found"
_DELAY: Final = "the Facilitator reads its list of validators anew every 5 minutes, so a change may take that long"


def remedy(complaint: str) -> str:
    """What an operator can do about a refusal; `complaint` is what the Facilitator said."""
    return f"{_REMEDY}; {_DELAY}" if _NOT_FOUND in complaint else _REMEDY
