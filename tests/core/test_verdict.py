import pytest

from relay.contract.facilitator_messages import Reply, ReplyError
from relay.contract.subjects import Reason
from relay.core.backoff import Backoff
from relay.core.verdict import (
    ACKNOWLEDGED,
    DUPLICATE,
    Ack,
    DeadLetter,
    Outcome,
    Repeated,
    Retry,
    RetryPolicy,
    is_unexplained,
    judge,
    judge_drop,
    judge_repeated,
)

POLICY = RetryPolicy(5, Backoff(1.0, 8.0, lambda: 0.5))


def refusal(*types):
    return Reply("error", tuple(ReplyError(type_, "because") for type_ in types))


def test_success_acknowledges():
    """Success acknowledges the update, however many attempts came before."""
    assert Ack(Outcome.ACKNOWLEDGED) == ACKNOWLEDGED == judge(Reply("success"), 9, POLICY)


@pytest.mark.parametrize("types", [("job.integrity_error",), ("job.not_found", "job.integrity_error")])
def test_an_update_that_is_already_there_is_acknowledged_if_that_can_be(types):
    """`job.integrity_error` anywhere among the errors means that the Facilitator has the update, if it is explained."""
    assert isinstance(judge(refusal(*types), 5, POLICY), Repeated)
    assert Ack(Outcome.DUPLICATE) == DUPLICATE == judge_repeated(5, POLICY, explained=True)


def test_an_unexplained_repeat_is_tried_again_and_then_dead_lettered():
    """Below `max_attempts` it is retried with backoff; then it is a dead letter with a reason of its own."""
    early, last = (judge_repeated(attempts, POLICY, explained=False) for attempts in (4, 5))
    assert (POLICY.backoff.delay_s(4), True) == (early.wait_s, is_unexplained(early))
    assert (Reason.UNEXPLAINED_DUPLICATE, True) == (last.reason, is_unexplained(last))
    assert not is_unexplained(judge(refusal("job.not_found"), 4, POLICY))
    assert not is_unexplained(judge(refusal("job.not_found"), 5, POLICY))


@pytest.mark.parametrize(
    "type_",
    [
        "missing",
        "string_type",
        "extra_forbidden",
        "json_invalid",
        "json_type",
        "union_tag_not_found",
        "union_tag_invalid",
    ],
)
def test_what_the_facilitator_cannot_read_is_not_tried_again(type_):
    """A pydantic error dead-letters at the first attempt, and quotes the Facilitator."""
    error = f"the Facilitator refused the update: {type_}: because"
    assert DeadLetter(Reason.REFUSED, error) == judge(refusal(type_), 1, POLICY)


@pytest.mark.parametrize("types", [("job.not_found",), ("something.new",), ()])
@pytest.mark.parametrize("attempts", [1, 4])
def test_any_other_error_is_tried_again(types, attempts):
    """An error that may be temporary, also an unknown one, is retried while attempts are left."""
    told = "; ".join(f"{type_}: because" for type_ in types) or "an error without a word of explanation"
    assert Retry(told, POLICY.backoff.delay_s(attempts)) == judge(refusal(*types), attempts, POLICY)


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        (("job.not_found",), Reason.JOB_NOT_FOUND),
        (("something.new", "job.not_found"), Reason.JOB_NOT_FOUND),
        (("something.new",), Reason.REFUSED),
        ((), Reason.REFUSED),
    ],
)
def test_the_last_attempt_ends_in_the_dead_letters(types, reason):
    """At `max_attempts` the update is dead-lettered; the reason says whether the job was unknown."""
    assert reason == judge(refusal(*types), 5, POLICY).reason


def test_a_dead_letter_quotes_the_last_answer():
    """The dead letter says how often the update was tried, and quotes the last answer."""
    error = "the Facilitator answered 5 times, the last time: job.not_found: because"
    assert DeadLetter(Reason.JOB_NOT_FOUND, error) == judge(refusal("job.not_found"), 5, POLICY)


def test_a_suspected_drop_is_tried_again_until_the_attempts_are_used_up():
    """Drops count like answers: below `max_attempts` the suspect may be sent again, then it is dead-lettered."""
    reasons = [getattr(judge_drop(attempts, POLICY), "reason", None) for attempts in (1, 4, 5)]
    assert [None, None, Reason.CONNECTION_DROPPED] == reasons
