"""Writes docs/asyncapi.yaml and docs/schemas from the models: `make schemas`. A test keeps them in step."""

import inspect
import json
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from relay.client.pushes import V0JobCheated, V2JobRequest
from relay.contract import subjects
from relay.contract.model import JobStatusUpdate
from relay.contract.report import Report
from relay.core.receipt import Receipt
from relay.query.replies import HistoryReply, HistoryRequest, QueryRequest, UpdateReply

DOCS: Final = Path(__file__).parents[2] / "docs"
STRUCTS: Final = {
    "query_request": QueryRequest,
    "history_request": HistoryRequest,
    "reply": UpdateReply,
    "history": HistoryReply,
    "receipt": Receipt,
    "report": Report,
    "job_request": V2JobRequest,
    "job_cheated": V0JobCheated,
}
_DIALECT: Final = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
_DEAD_LETTER: Final = {
    "title": "Dead letter headers",
    "description": "The body is that of the update. Its headers are there too; Nats-* as Relay-Original-Nats-*.",
    "type": "object",
    "properties": {
        subjects.REASON_HEADER: {"enum": [reason.value for reason in subjects.Reason]},
        subjects.ERROR_HEADER: {"type": "string"},
        subjects.ATTEMPTS_HEADER: {"type": "string", "pattern": "^[0-9]+$"},
        subjects.SOURCE_SUBJECT_HEADER: {"type": "string"},
        subjects.SOURCE_SEQUENCE_HEADER: {"type": "string", "pattern": "^[0-9]+$"},
        subjects.SOURCE_STORED_AT_HEADER: {"type": "string", "format": "date-time"},
        subjects.FAILED_AT_HEADER: {"type": "string", "format": "date-time"},
    },
    "required": [subjects.REASON_HEADER, subjects.SOURCE_SUBJECT_HEADER, subjects.SOURCE_SEQUENCE_HEADER],
}
_UPDATE_HEADERS: Final = {
    "type": "object",
    "properties": {
        subjects.MSG_ID_HEADER: {"type": "string", "description": "The same at each try: JetStream stores it once."},
        "traceparent": {"type": "string", "description": "W3C Trace Context."},
    },
}
_SERVICE_ERROR: Final = {
    "type": "object",
    "description": "An answer with these headers is an error, and has no body.",
    "properties": {
        "Nats-Service-Error-Code": {"enum": ["400", "404", "429", "500", "503"]},
        "Nats-Service-Error": {"type": "string"},
    },
}


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas, by file name without its ending."""
    structs = {name: _DIALECT | _dedented(msgspec.json.schema(kind)) for name, kind in STRUCTS.items()}
    update = _DIALECT | JobStatusUpdate.model_json_schema()
    return {"update": update, "dead_letter_headers": _DIALECT | _DEAD_LETTER, **structs}


def document() -> dict[str, Any]:
    """The AsyncAPI document, from the point of view of a program that uses the relay."""
    channels = {
        "update": ("job.status.{uuid}", "Updates. JetStream: the stream JOB_STATUS answers with a PubAck.", ["update"]),
        "deadLetter": ("job.dlq.{token}", "Dead letters, in the stream JOB_DLQ.", ["deadLetter"]),
        "query": ("job.query.{uuid}", "A job's latest status, by request and reply.", ["queryRequest"]),
        "history": ("job.history.{uuid}", "All stored updates of a job, by request and reply.", ["historyRequest"]),
        "receipt": ("job.relayed.{token}", "A receipt for each settled update, with RELAY_RECEIPTS=true.", ["receipt"]),
        "jobRequest": ("job.request.{token}", "Job requests, in the stream JOB_REQUESTS.", ["jobRequest"]),
        "jobCheated": ("job.cheated.{token}", "Reports of cheated jobs, in the stream JOB_REQUESTS.", ["jobCheated"]),
        "report": (subjects.REPORT_SUBJECT, "Every worker answers with its report.", ["reportRequest"]),
        "inbox": (
            None,
            "Where answers go: the reply subject of the request.",
            ["pubAck", "reply", "historyReply", "report"],
        ),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "job-status-relay",
            "version": "0.1.0",
            "description": "Every subject that programs use. subjects.md says what each means.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(*parts) for name, parts in channels.items()},
        "operations": {
            "publishUpdate": _request("update", ["pubAck"]),
            "askForStatus": _request("query", ["reply"]),
            "askForHistory": _request("history", ["historyReply"]),
            "askForReports": _request("report", ["report"]),
            **{
                f"receive{name[0].upper()}{name[1:]}": {"action": "receive", "channel": _ref("channels", name)}
                for name in ("receipt", "deadLetter", "jobRequest", "jobCheated")
            },
        },
        "components": {"messages": _messages(), "schemas": _components()},
    }


def _channel(address: str | None, description: str, messages: list[str]) -> dict[str, Any]:
    names = [part[1:-1] for part in (address or "").split(".") if part.startswith("{")]
    parameters = {"parameters": {name: {"description": _PARAMETERS[name]} for name in names}} if names else {}
    references = {name: _ref("components/messages", name) for name in messages}
    return {"address": address, "description": description, **parameters, "messages": references}


_PARAMETERS: Final = {
    "uuid": "The job's UUID, in lower case with hyphens.",
    "token": "The job's UUID, or what the message has instead.",
}


def _request(channel: str, answers: list[str]) -> dict[str, Any]:
    messages = [_ref("channels/inbox/messages", name) for name in answers]
    return {
        "action": "send",
        "channel": _ref("channels", channel),
        "reply": {"channel": _ref("channels", "inbox"), "messages": messages},
    }


def _messages() -> dict[str, Any]:
    update, error = _ref("components/schemas", "JobStatusUpdate"), _SERVICE_ERROR
    return {
        "update": {"headers": _UPDATE_HEADERS, "payload": update},
        "deadLetter": {"headers": _DEAD_LETTER, "payload": {"description": "The update's body, whatever it is."}},
        "queryRequest": {"payload": _ref("components/schemas", "QueryRequest")},
        "historyRequest": {"payload": _ref("components/schemas", "HistoryRequest")},
        "reportRequest": {"payload": {"description": "Empty."}},
        "receipt": {"payload": _ref("components/schemas", "Receipt")},
        "jobRequest": {"payload": _ref("components/schemas", "V2JobRequest")},
        "jobCheated": {"payload": _ref("components/schemas", "V0JobCheated")},
        "reply": {"headers": error, "payload": _ref("components/schemas", "UpdateReply")},
        "historyReply": {"headers": error, "payload": _ref("components/schemas", "HistoryReply")},
        "report": {"payload": _ref("components/schemas", "Report")},
        "pubAck": {
            "payload": {
                "type": "object",
                "properties": {
                    "stream": {"type": "string"},
                    "seq": {"type": "integer"},
                    "duplicate": {"type": "boolean"},
                    "error": {"type": "object", "description": "It is not stored: err_code and description say why."},
                },
            }
        },
    }


def _components() -> dict[str, Any]:
    template = "#/components/schemas/{name}"
    _, components = msgspec.json.schema_components(STRUCTS.values(), ref_template=template)
    update = JobStatusUpdate.model_json_schema(ref_template=template.replace("name", "model"))
    return {**update.pop("$defs"), "JobStatusUpdate": update, **_dedented(components)}


def _dedented(schema: Any) -> Any:
    """`schema` with descriptions that are not indented; some releases of msgspec leave them as they are in the code."""
    if isinstance(schema, list):
        return [_dedented(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    described = "description" in schema and isinstance(schema["description"], str)
    text = {"description": inspect.cleandoc(schema["description"])} if described else {}
    return {name: _dedented(each) for name, each in schema.items()} | text


def _ref(place: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/{place}/{name}"}


def main() -> None:
    (DOCS / "schemas").mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (DOCS / "schemas" / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n")
    text = yaml.safe_dump(document(), sort_keys=False, width=120, allow_unicode=True)
    (DOCS / "asyncapi.yaml").write_text(f"# Written by `make schemas`.\n{text}")


if __name__ == "__main__":
    main()
