"""Shortening: a terminal status gets through whatever its metadata, and says what is missing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.contract.wire import Frame, decode
from relay.producer.channel_layer import update_of
from relay.producer.shortening import largest_parts, shortened

JOB = "123e4567-e89b-42d3-a456-426614174000"
RESPONSE = {"docker_process_stdout": "a" * 9000 + "z" * 9000, "docker_process_stderr": "few words"}
LEAST_BYTES = 4096


def short(metadata: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """The metadata after shortening."""
    body = shortened(update_of({"uuid": JOB, "status": "failed", "metadata": metadata}), max_bytes)
    assert body is not None
    assert len(body) <= max_bytes
    return {name: value for name, value in json.loads(body)["metadata"].items() if value is not None}


def test_outputs_are_cut_in_the_middle():
    """Both ends of the long output stay, the marker says how much is missing, and what is short stays whole."""
    response = short({"miner_response": RESPONSE, "n": 1}, 6000)["miner_response"]
    output = response["docker_process_stdout"]
    head, marker, tail = output.split("\n")
    assert (f"[... {18000 - len(head) - len(tail)} of 18000 characters are left out here,", "few words") == (
        marker[: marker.index(",") + 1],
        response["docker_process_stderr"],
    )
    assert ({"a"}, {"z"}) == (set(head), set(tail))
    assert 5900 < len(output) + 300 < 6300


def test_artifacts_are_left_out_at_last():
    """Artifacts stay as long as shorter outputs are enough; then they are named, and outputs get their room."""
    artifacts = {"model.bin": "b" * 3000, "log.txt": "l"}
    metadata = {"miner_response": {**RESPONSE, "artifacts": artifacts}, "further": [1]}
    assert artifacts == short(metadata, 4500)["miner_response"]["artifacts"]
    without = short(metadata, 2000)
    assert "artifacts" not in without["miner_response"]
    assert {"artifacts": {"names": ["model.bin", "log.txt"], "count": 2}} == without["shortened"]
    assert [1] == without["further"]
    assert len(without["miner_response"]["docker_process_stdout"]) > 1000


def test_the_least():
    """If nothing else helps, members that the Facilitator does not need are left out, and named."""
    details = {"reason": "timeout", "stage": "execution", "message": "m" * 9000, "context": {"a": "b" * 9000}}
    least = short({"job_failure_details": details, "other": "c" * 9000}, 2000)
    assert {"members": {"names": ["other", "job_failure_details.context"], "count": 2}} == least["shortened"]
    assert least["job_failure_details"]["message"].startswith("mmm")


def test_nothing_to_leave_out():
    """An update that cannot be made short enough is said to be so, with its largest parts."""
    update = update_of({"uuid": JOB, "status": "failed", "metadata": {"miner_response": RESPONSE, "n": "x" * 99}})
    assert shortened(update, 200) is None
    assert largest_parts(update) == (
        "miner_response.docker_process_stdout 18002 bytes, n 101 bytes, miner_response.docker_process_stderr 11 bytes"
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from("\x01é😀a").map(lambda c: c * 3000)


@pytest.mark.parametrize("max_bytes", [LEAST_BYTES, 20_000])
@given(st.fixed_dictionaries({"stdout": TEXTS, "message": TEXTS, "context": TEXTS, "artifact": TEXTS, "more": TEXTS}))
def test_always_gets_out(max_bytes, texts):
    """Whatever is in it, a status fits into a few kilobytes, and the relay can send the result."""
    metadata = {
        "miner_response": {
            "docker_process_stdout": texts["stdout"],
            "docker_process_stderr": texts["message"],
            "artifacts": {texts["artifact"] or "a": texts["artifact"]},
        },
        "horde_failure_details": {
            "reported_by": "validator",
            "reason": "unknown",
            "message": texts["message"],
            "context": {"c": texts["context"]},
        },
        "more": texts["more"],
    }
    body = shortened(update_of({"uuid": JOB, "status": "failed", "metadata": metadata}), max_bytes)
    assert body is not None
    assert len(body) <= max_bytes
    assert isinstance(decode(body, JOB), Frame)
