"""subjects.md, compared with the code. Run this file as a script to write its generated tables again."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, between, table_after

from relay.contract import subjects
from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.settings import DeliverySettings
from relay.path.receipts import Receipt
from relay.query.replies import HistoryRequest, QueryRequest, UpdateReply
from relay.topology.provision import topology_of, wanted

PAGE = ROOT / "subjects.md"
TEXT = PAGE.read_text()
UUID = "123e4567-e89b-42d3-a456-426614174000"
EXAMPLES = {"uuid": UUID, "token": UUID, "lane": 0, "stored": f"job.status.0.{UUID}", "consumer": "relay-lane-0"}
"""An argument for each parameter of the functions that build subjects."""
WANTED = wanted(topology_of(DeliverySettings()), 2**20)
DURATIONS = {0: "none", 5 * 10**9: "`RELAY_LEASE_TTL`", 120 * 10**9: "2 minutes", 3600 * 10**9: "1 hour"}
DURATIONS[7 * 24 * 3600 * 10**9] = "7 days"


def streams_markdown() -> str:
    """The table of streams as the page must have it."""
    rows = ["| stream | captures | when full, discards | `max_age` | `duplicate_window` |\n", "| --- " * 5 + "|\n"]
    for name, config in WANTED.streams.items():
        captured = ", ".join(f"`{subject}`" for subject in config["subjects"])
        age, window = (DURATIONS[config[key]] if key in config else "" for key in ("max_age", "duplicate_window"))
        rows.append(f"| `{name}` | {captured} | {config['discard']} | {age} | {window} |\n")
    return "".join(rows)


def fields_markdown() -> str:
    """The fields of an update as the page must have them."""
    described: dict[str, str] = {
        "message_type": "`V0JobStatusUpdate`",
        "uuid": "the job's UUID, the one in the subject",
        "status": ", ".join(f"`{status}`" for status in JobStatus),
        "metadata": "null, or an object (`JobStatusMetadata`), open to further keys",
    }
    return "".join(f"| `{name}` | {described[name]} |\n" for name in JobStatusUpdate.model_fields)


GENERATED = {"streams": streams_markdown, "fields": fields_markdown}


def pattern(name: str) -> str:
    """A name with every placeholder (`<uuid>`, `<n>`, `>`) as `*`."""
    return re.sub(r"<\w+>|>", "*", name)


def entries() -> dict[str, str]:
    """The text of the page for each name; a heading may have several names."""
    found: dict[str, str] = {}
    for part in TEXT.split("\n### `")[1:]:
        heading, _, text = part.partition("\n")
        found |= {pattern(name): text for name in re.findall(r"[^`]+", heading) if name != ", "}
    return found


def constants(*endings: str) -> dict[str, Any]:
    """The public constants of subjects.py whose names end with one of `endings`."""
    return {name: value for name, value in vars(subjects).items() if name.isupper() and name.endswith(endings)}


def built_subjects() -> set[str]:
    """The result of each function of subjects.py whose name ends in `_subject`, as a pattern."""
    functions = [function for name, function in vars(subjects).items() if name.endswith("_subject")]
    built = {function(*(EXAMPLES[name] for name in inspect.signature(function).parameters)) for function in functions}
    return {re.sub(r"\.0(?=\.|$)", ".*", name.replace(UUID, "*").replace("relay-lane-0", "*")) for name in built}


def names() -> set[str]:
    """Every stream, subject, consumer and bucket of subjects.py and of the topology, as patterns."""
    captured = {subject for config in WANTED.streams.values() for subject in config["subjects"]}
    consumers = {re.sub(r"\d+$", "*", name) for name in WANTED.consumers}
    known = set(constants("_STREAM", "_BUCKET").values()) | set(WANTED.streams) | consumers
    for value in constants("_SUBJECT", "_SUBJECTS").values():
        captured |= {value} if isinstance(value, str) else set(value)
    return known | {pattern(subject) for subject in captured} | built_subjects()


def keys_of(heading: str) -> list[str]:
    """The first column of a table of the page."""
    return [row[0].strip("`").removesuffix("<name>") for row in table_after(heading, TEXT)]


def test_names():
    """Each stream, subject, consumer and bucket has an entry, and there are no other entries."""
    assert names() == entries().keys()


def test_headers():
    """The table of headers has each header of subjects.py, and no other."""
    assert sorted(constants("_HEADER", "_HEADER_PREFIX").values()) == sorted(keys_of("| header | value |"))


def test_answers():
    """The table of an answer about an update has each field of the reply, in order."""
    section = TEXT.partition("#### An answer about an update\n\n")[2]
    fields = [row[0].strip("`") for row in table_after("| field | value |", section)]
    assert list(UpdateReply.__struct_fields__) == fields


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("job.query.*", QueryRequest.__struct_fields__),
        ("job.history.*", HistoryRequest.__struct_fields__),
        ("job.relayed.*", Receipt.__struct_fields__),
        ("relay-lane-*", [subjects.DLQ_METADATA_KEY]),
    ],
)
def test_fields(name, words):
    """The entries of requests, of receipts and of the lanes' consumers name their fields."""
    assert [] == [word for word in words if not re.search(rf'[`"]{re.escape(word)}[`"]', entries()[name])]


@pytest.mark.parametrize("table", GENERATED)
def test_generated_tables(table):
    """The tables of streams and of fields agree with the topology and with the model."""
    written = between(table, TEXT)
    assert GENERATED[table]() == written, f"write it anew with: python {Path(__file__).relative_to(ROOT)}"


if __name__ == "__main__":
    for name, table in GENERATED.items():
        TEXT = TEXT.replace(between(name, TEXT), table())
    PAGE.write_text(TEXT)
