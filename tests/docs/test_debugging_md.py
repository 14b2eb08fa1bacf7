"""The table of checks in docs/debugging.md, compared with the checks of `relay doctor`."""

from pages import ROOT, table_after

from relay.cli.doctor import CONFIGURATION
from relay.doctor.checks import CHECKS
from relay.doctor.facilitator_checks import HOTKEY
from relay.doctor.state_checks import CLOCK_S, FULL, NEARLY_FULL, OLD_S, PAGE, TOO_OLD_S

ROWS = {
    name.strip("`"): limits
    for name, _, *limits in table_after("| check | looks at | warn | fail |", (ROOT / PAGE).read_text())
}


def test_checks():
    """The table has each check once, in the order in which they are printed."""
    assert [CONFIGURATION, HOTKEY, *CHECKS] == list(ROWS)


def test_limits():
    """The table has the limits for a warning and for a failure."""
    assert ["the oldest is 60 seconds old", "10 minutes"] == ROWS["backlog"]
    assert (60, 600) == (OLD_S, TOO_OLD_S)
    shares = [f"{share * 100:g} %" for share in (NEARLY_FULL, FULL)]
    assert (shares, shares) == (ROWS["storage"], ROWS["account"])
    assert f"{CLOCK_S:g} second apart" == ROWS["clock"][0]
