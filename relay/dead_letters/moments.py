"""Points in time, read from the server, a message id, an operator or a file. All are UTC, to the microsecond."""

import datetime as dt
import re
from typing import Final

_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_AGE: Final = re.compile(r"(\d+)([smhd])")
_AGE_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment_of_us(microseconds: int) -> dt.datetime:
    """The moment from Unix time in microseconds."""
    return _EPOCH + microseconds * _MICROSECOND


def moment_of_ns(nanoseconds: int) -> dt.datetime:
    """The moment from Unix time in nanoseconds, cut off to the microsecond."""
    return moment_of_us(nanoseconds // 1000)


def unix_us(moment: dt.datetime) -> int:
    """Unix time in microseconds, the inverse of `moment_of_us`."""
    return (moment - _EPOCH) // _MICROSECOND


def parse_since(text: str, now: dt.datetime) -> dt.datetime:
    """The moment that `text` names: an age (`90s`, `15m`, `2h`, `3d`) or an ISO 8601 time, UTC if it has no offset.

    Raises ValueError if it is neither.
    """
    if (age := _AGE.fullmatch(text)) is not None:
        try:
            return now - dt.timedelta(seconds=int(age[1]) * _AGE_UNITS_S[age[2]])
        except OverflowError:
            raise ValueError(f"{text} ago is before the first year of the calendar") from None
    moment = dt.datetime.fromisoformat(text)
    return in_utc(moment) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def in_utc(moment: dt.datetime) -> dt.datetime:
    """A moment with an offset, in UTC. Raises ValueError if that is outside the years 1 to 9999."""
    try:
        return moment.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"{moment.isoformat()} in UTC is outside the years of the calendar") from None
