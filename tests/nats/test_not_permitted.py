"""What the server refuses to a connection, kept from its errors."""

import pytest

from relay.nats.refusals import Refusals


def told(*errors: str, now_s: float = 0.0) -> Refusals:
    refusals = Refusals()
    for error in errors:
        refusals.told(error, now_s)
    return refusals


@pytest.mark.parametrize(
    ("subject", "kept"),
    [
        ("job.relayed.123e4567-e89b-42d3-a456-426614174000", "job.relayed.>"),
        ("$JS.ACK.JOB_STATUS.relay-lane-0.1.1.1.1.0", "$js.ack.>"),
        ("$JS.API.STREAM.INFO.JOB_DLQ", "$js.api.stream.info.job_dlq"),
        ("$JS.hub.API.STREAM.INFO.JOB_DLQ", "$js.hub.api.stream.info.job_dlq"),
        ("relay.canary", "relay.canary"),
    ],
)
def test_publishes_that_begin_alike(subject, kept):
    """Refused publishes of many jobs are one entry, told once."""
    refusals = Refusals()
    error = f'permissions violation for publish to "{subject}"'
    assert [True, False] == [refusals.told(error, 0.0), refusals.told(error, 1.0)]
    assert [kept] == refusals.publishes(2.0)


def test_subscriptions():
    """A refused subscription stays until it was asked for again without being refused; every form is read."""
    refusals = told(
        'permissions violation for subscription to "a.b.c"',
        'permissions violation for subscription to "q.*" using queue "job-status"',
        'permissions violation for subscription to "removed.>" (sid "3")',
    )
    assert ["a.b.c", "q.*", "removed.>"] == refusals.subscriptions
    refusals.told('permissions violation for subscription to "q.*" using queue "job-status"', 5.0)
    refusals.drop_subscriptions(4.0)
    assert ["q.*"] == refusals.subscriptions


def test_a_publish_is_forgotten():
    """A refused publish is told for 10 minutes, or until the next connection, which may have other permissions."""
    refusals = told('permissions violation for publish to "a.b.c"')
    assert ["a.b.>"] == refusals.publishes(599.0)
    assert [] == refusals.publishes(600.0)
    refusals.forget()
    assert [] == refusals.publishes(0.0)


def test_why_unanswered():
    """Whoever gets no answer learns of its own refusal, whatever else was refused since, or of that of its inbox."""
    refusals = told('permissions violation for publish to "job.request.a"')
    for each in range(1000):
        refusals.told(f'permissions violation for publish to "job.relayed.{each}"', 1.0)
    refusals.told('permissions violation for subscription to "_inbox.relay.x.*"', 1.0)
    assert 'permissions violation for publish to "job.request.A"' == refusals.why_unanswered("job.request.A", "_INBOX.")
    assert 'permissions violation for subscription to "_inbox.relay.x.*"' == refusals.why_unanswered("a", "_INBOX.")
    assert refusals.why_unanswered("job.request.b", "_OTHER.") is None


def test_ever_new_subjects():
    """Answers that strangers send to ever new subjects take no more memory, and no more lines in the log."""
    refusals = Refusals()
    new = [refusals.told(f'permissions violation for publish to "{each}.x"', 0.0) for each in range(1000)]
    assert (100, 100) == (sum(new), len(refusals.publishes(0.0)))


def test_too_many_subscriptions():
    """The server does not say which subscription is one too many, so it may be any, until none is refused."""
    refusals = Refusals()
    assert [True, False] == [refusals.told("'maximum subscriptions exceeded'", now_s) for now_s in (0.0, 1.0)]
    assert (True, True) == (refusals.too_many, refusals.lacks("any"))
    refusals.drop_subscriptions(1.0)
    assert refusals.too_many
    refusals.drop_subscriptions(2.0)
    assert (False, False) == (refusals.too_many, refusals.lacks("any"))


def test_other_errors():
    """What is no refusal is always reported."""
    refusals = Refusals()
    assert [True, True] == [refusals.told("maximum payload violation", 0.0) for _ in range(2)]
    assert ([], []) == (refusals.publishes(0.0), refusals.subscriptions)
