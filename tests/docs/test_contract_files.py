"""docs/asyncapi.yaml and docs/schemas: in step with the models, valid, and true for what is sent."""

import json
import re
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from contract_files import DOCS, document, schemas

from relay.client.pushes import V0JobCheated, V2JobRequest
from relay.contract.model import JobStatusUpdate
from relay.core.receipt import Receipt
from relay.core.verdict import Outcome
from relay.query.replies import UpdateProgress, UpdateReply

JOB = "123e4567-e89b-42d3-a456-426614174000"
SENT = {
    "update": JobStatusUpdate(uuid=JOB, status="failed", metadata={"n": 1}).to_json(),
    "reply": msgspec.json.encode(
        UpdateReply(
            uuid=JOB,
            status=None,
            terminal=False,
            sequence=1,
            published="",
            progress=UpdateProgress.PENDING,
            unreadable="?",
        )
    ),
    "receipt": msgspec.json.encode(Receipt(JOB, "sent", 1, Outcome.ACKNOWLEDGED, None, 0, 1.5)),
    "job_request": msgspec.json.encode(V2JobRequest(JOB)),
    "job_cheated": msgspec.json.encode(V0JobCheated(JOB)),
}


def test_in_step():
    """The files are what `make schemas` writes now."""
    files = {path.stem: json.loads(path.read_text()) for path in (DOCS / "schemas").iterdir()}
    assert schemas() == files, "run `make schemas`"
    assert document() == yaml.safe_load((DOCS / "asyncapi.yaml").read_text()), "run `make schemas`"


def test_valid_schemas():
    """Every schema is a valid JSON Schema."""
    for schema in [*schemas().values(), *document()["components"]["schemas"].values()]:
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", SENT)
def test_true_for_what_is_sent(name):
    """What is sent is valid; without a required member it is not."""
    validator = jsonschema.Draft202012Validator(schemas()[name])
    message = json.loads(SENT[name])
    assert [] == list(validator.iter_errors(message))
    required = {name: value for name, value in message.items() if name not in {"uuid", "job_uuid"}}
    assert [] != list(validator.iter_errors(required))


def test_references():
    """Every reference in the AsyncAPI document leads somewhere, and every subject has its section in subjects.md."""
    whole = document()
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(whole)):
        place: Any = whole
        for part in reference.split("/"):
            place = place[part]
    addresses = {re.sub(r"\{(\w+)\}", r"<\1>", channel["address"] or "") for channel in whole["channels"].values()}
    page = (DOCS.parent / "subjects.md").read_text()
    assert {f"### `{address}`" for address in addresses if address} <= set(
        re.findall(r"^### `[^`]+`", page, re.MULTILINE)
    )
