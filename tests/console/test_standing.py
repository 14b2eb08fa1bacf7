"""What the first line says, from views and findings alone."""

import datetime as dt

import pytest
from snapshot_kit import report, snapshot

from relay.console.verdict import Standing
from relay.contract.errors import BrokerUnavailable, JetStreamError, NotProvisioned
from relay.doctor.findings import Level, fail, ok, warn
from relay.overview.snapshot import LaneSnapshot
from relay.overview.watch import View

AT = dt.datetime(2026, 11, 22, 3, 14, tzinfo=dt.UTC)
NEVER = View(AT, None, None)
GOOD = View(AT, snapshot(), None)
WORTH_A_LOOK = View(AT, snapshot(report(warnings=["its clock is off"])), None)
BROKEN = View(AT, snapshot(lanes=(LaneSnapshot(0, None),)), None)
AWAY = View(AT, GOOD.snapshot, None, "for 2 s now: away", BrokerUnavailable([], "away"))
FINE = [ok("topology", "as it should be")]
LOOKING = (Level.WARN, "Looking")
FLOWS = (Level.OK, "Updates flow")
HAVE_A_LOOK = (Level.WARN, "Updates flow, have a look")
MAYBE_NOT = (Level.WARN, "Updates may not flow")
FLOWS_NOT = (Level.FAIL, "Updates do not flow")
NO_NEWS = (Level.FAIL, "No news from NATS")


def after(*views: View, broker=FINE, connected: bool = True, ours=None) -> Standing:
    """What is known when the servers have been checked, and then these views have come."""
    standing = Standing(NEVER, ours or {})
    standing.take_broker(broker)
    for view in views:
        standing.take(view, connected=connected)
    return standing


def says(standing: Standing) -> tuple[Level, str]:
    return standing.verdict.level, standing.verdict.headline


@pytest.mark.parametrize(
    ("view", "broker", "said"),
    [
        (GOOD, FINE, FLOWS),
        (WORTH_A_LOOK, FINE, HAVE_A_LOOK),
        (GOOD, [warn("account", "nearly full", "raise it")], HAVE_A_LOOK),
        (BROKEN, [warn("account", "nearly full", "raise it")], FLOWS_NOT),
        (GOOD, [fail("topology", "no consumer", "make it")], FLOWS_NOT),
    ],
)
def test_worst_finding_decides(view, broker, said):
    assert said == says(after(view, broker=broker))


def test_nothing_is_good_before_all_has_been_looked_at():
    """Neither half of the checks makes it green; either makes it red."""
    assert LOOKING == says(after(broker=()))
    assert LOOKING == says(after())
    assert LOOKING == says(after(GOOD, broker=()))
    assert FLOWS_NOT == says(after(BROKEN, broker=()))
    assert FLOWS_NOT == says(after(broker=[fail("topology", "no consumer", "make it")]))


def test_trouble():
    """Without news nothing counts that was found before; missing streams are news."""
    away = after(GOOD, AWAY, connected=False)
    assert NO_NEWS == says(away)
    assert [fail("state", "not known for 2 s now: away", "")] == away.findings
    missing = NotProvisioned(["stream JOB_STATUS is missing"])
    unprovisioned = after(GOOD, View(AT, None, None, f"for 2 s now: {missing}", missing))
    assert FLOWS_NOT == says(unprovisioned)
    assert ["state", "topology"] == [finding.check for finding in unprovisioned.findings]
    strange = JetStreamError("$JS.API.STREAM.INFO.JOB_DLQ", 503, 10008, "unavailable")
    unknown = after(GOOD, View(AT, GOOD.snapshot, None, f"for 2 s now: {strange}", strange))
    assert (Level.FAIL, "The state is not known") == says(unknown)


def test_one_broken_view():
    """It is no alarm, two are; nor is it green, also if it comes again and again. One before a trouble counts not."""
    for views in ((GOOD, BROKEN), (BROKEN, GOOD), (GOOD, BROKEN, GOOD, BROKEN)):
        standing = after(*views)
        assert MAYBE_NOT == says(standing)
        assert "nobody drives lane 0" in standing.verdict.reason
    assert FLOWS_NOT == says(after(GOOD, BROKEN, BROKEN))
    assert FLOWS == says(after(BROKEN, GOOD, GOOD))
    assert FLOWS_NOT == says(after(GOOD, AWAY, BROKEN))
    assert HAVE_A_LOOK == says(after(GOOD, WORTH_A_LOOK))


def test_other_settings():
    """A worker with other settings than here is worth a look, as `relay doctor` says."""
    view = View(AT, snapshot(report(settings={"RELAY_ACK_WAIT": 9})), None)
    standing = after(view, ours={"RELAY_ACK_WAIT": 5})
    assert HAVE_A_LOOK == says(standing)
    assert "RELAY_ACK_WAIT is 5 here, and 9" in standing.verdict.reason
