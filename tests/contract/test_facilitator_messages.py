import json

import pytest

from relay.contract import facilitator_messages
from relay.contract.facilitator_messages import (
    HEARTBEAT,
    PYDANTIC_ERROR_TYPES,
    Push,
    PushKind,
    Reply,
    ReplyError,
    authentication_request,
    decode_incoming,
)

JOB = "123e4567-e89b-42d3-a456-426614174000"


def test_a_reply_is_told_by_its_status():
    """Success and error replies are read, with the type and text of each error, without its echo of the message."""
    text = '{"status":"error","errors":[{"msg":"Job\\nnot found","type":"job.not_found","help":"","input":{"x":[1]}}]}'
    assert Reply("success", ()) == decode_incoming('{"status":"success","errors":[]}')
    assert Reply("error", (ReplyError("job.not_found", "Job\\nnot found"),)) == decode_incoming(text)
    assert Reply("error", (ReplyError("job.not_found", "Job\\nnot found"),)) == decode_incoming(text.encode())


def test_an_error_without_text_still_has_its_type():
    """Missing members of an error are read as empty."""
    assert Reply("error", (ReplyError("x", ""), ReplyError("", ""))) == decode_incoming(
        '{"status":"error","errors":[{"type":"x"},{}]}'
    )


@pytest.mark.parametrize("errors", ["7", "[1]", '{"type":"x"}', '[{"type":1}]', "null"])
def test_a_reply_with_errors_in_another_shape_is_still_a_reply(errors):
    """Replies are matched by order, so a reply with unreadable errors still counts as a reply."""
    assert Reply("error", ()) == decode_incoming(f'{{"status":"error","errors":{errors}}}')


PUSHES = {
    f'{{"message_type":"V2JobRequest","type":"job.new","uuid":"{JOB}","status":"x","errors":7}}': Push(
        PushKind.REQUEST, JOB, "V2JobRequest"
    ),
    f'{{"message_type":"V0JobCheated","type":"job.cheated","job_uuid":"{JOB}"}}': Push(
        PushKind.CHEATED, JOB, "V0JobCheated"
    ),
    '{"message_type":"V2JobRequest"}': Push(PushKind.REQUEST, "unknown", "V2JobRequest"),
    '{"message_type":"V0JobCheated","uuid":"x"}': Push(PushKind.CHEATED, "unknown", "V0JobCheated"),
    f'{{"message_type":"V9","uuid":"{JOB}"}}': Push(PushKind.OTHER, JOB, "V9"),
    '{"message_type":"V9","uuid":7}': Push(PushKind.OTHER, "unknown", "V9"),
    '{"message_type":"V9","status":"success","errors":[]}': Push(PushKind.OTHER, "unknown", "V9"),
}


@pytest.mark.parametrize("text", PUSHES)
def test_a_message_with_a_message_type_is_a_push(text):
    """A message with `message_type` is a push, whatever else it has; its job is read from it."""
    assert PUSHES[text] == decode_incoming(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "[]", "{}", '{"status":"maybe"}', '{"status":["success"]}', '{"message_type":null}'),
        *(b"\xff", "\ud800", "[" * 10_000, '{"uuid":' + "[" * 10_000),
    ],
)
def test_what_is_neither_reply_nor_push_is_not_understood(text):
    """Any other message is reported as not understood, and nothing is raised."""
    assert decode_incoming(text) is None


@pytest.mark.parametrize(("key", "signature"), [("ab", "cd"), ("0xab", "0xcd"), ("ab", "0xcd")])
def test_the_first_message_signs_in_with_the_prefix_on_the_signature_alone(key, signature):
    """In whatever form they are given, the authentication request has the key without 0x and the signature with it."""
    expected = {"message_type": "V0AuthenticationRequest", "public_key": "ab", "signature": "0xcd"}
    assert expected == json.loads(authentication_request(key, signature))


def test_the_heartbeat_is_the_message_that_gets_no_reply():
    """The heartbeat has only its message type."""
    expected = {"message_type": "V0Heartbeat"}
    assert expected == json.loads(HEARTBEAT)


def test_the_error_types_of_a_refused_message_are_known():
    """The error types with which the Facilitator was seen to refuse are pydantic's; the Facilitator's own are not."""
    seen = {"missing", "string_type", "extra_forbidden", "json_invalid", "json_type", "union_tag_not_found"}
    assert seen == seen & PYDANTIC_ERROR_TYPES
    assert not {"job.not_found", "job.integrity_error", "auth.not_authenticated"} & PYDANTIC_ERROR_TYPES


@pytest.mark.parametrize("text", facilitator_messages._USUAL)
def test_a_usual_answer_is_what_decoding_it_says(text):
    assert Reply("success") == facilitator_messages._decode_incoming(text) == decode_incoming(text)
