"""subjects.md against the code. Run this file as a script to write its generated tables anew."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from relay.contract import subjects
from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.settings import DeliverySettings
from relay.path.receipts import Receipt
from relay.query.replies import HistoryRequest, QueryRequest, UpdateReply
from relay.topology.provision import topology_of, wanted

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "subjects.md"
ASPECTS = [
    "Purpose",
    "Schema",
    "Idempotency",
    "Producers",
    "Consumers",
    "Errors and retry",
    "Monitoring",
    "Expectations",
]
UUID = "123e4567-e89b-42d3-a456-426614174000"
EXAMPLES = {"uuid": UUID, "token": UUID, "lane": 0, "stored": f"job.status.0.{UUID}", "consumer": "relay-lane-0"}
"""An argument for each parameter of the functions that build subjects."""
WANTED = wanted(topology_of(DeliverySettings()), 2**20)
DURATIONS = {0: "none", 5 * 10**9: "`RELAY_LEASE_TTL`", 120 * 10**9: "2 minutes", 3600 * 10**9: "1 hour"}
DURATIONS[7 * 24 * 3600 * 10**9] = "7 days"


def streams_markdown() -> str:
    """The table of streams, as it must stand in subjects.md."""
    rows = ["| stream | captures | when full, discards | `max_age` | `duplicate_window` |\n", "| --- " * 5 + "|\n"]
    for name, config in WANTED.streams.items():
        captured = ", ".join(f"`{subject}`" for subject in config["subjects"])
        age, window = (DURATIONS[config[key]] if key in config else "" for key in ("max_age", "duplicate_window"))
        rows.append(f"| `{name}` | {captured} | {config['discard']} | {age} | {window} |\n")
    return "".join(rows)


def fields_markdown() -> str:
    """The fields of an update, as they must stand in subjects.md."""
    described: dict[str, str] = {
        "message_type": "`V0JobStatusUpdate`",
        "uuid": "the job's UUID, the one in the subject",
        "status": ", ".join(f"`{status}`" for status in JobStatus),
        "metadata": "null, or an object (`JobStatusMetadata`), open to further keys",
    }
    return "".join(f"| `{name}` | {described[name]} |\n" for name in JobStatusUpdate.model_fields)


GENERATED = {"streams": streams_markdown, "fields": fields_markdown}


def between(name: str, text: str) -> str:
    return text.partition(f"<!-- {name}: begin -->\n")[2].partition(f"<!-- {name}: end -->\n")[0]


def pattern(name: str) -> str:
    """A name with every placeholder (`<uuid>`, `<n>`, `>`) as `*`."""
    return re.sub(r"<\w+>|>", "*", name)


def entries() -> dict[str, dict[str, str]]:
    """What the page says of each name, aspect by aspect; a heading may have several names."""
    found: dict[str, dict[str, str]] = {}
    for part in PAGE.read_text().split("\n### `")[1:]:
        heading, rest = part.split("\n", 1)
        aspects = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", rest, flags=re.MULTILINE))
        found |= {pattern(name): aspects for name in re.findall(r"[^`]+", heading) if name != ", "}
    return found


def constants(*endings: str) -> dict[str, Any]:
    """The public constants of subjects.py whose names end so."""
    return {name: value for name, value in vars(subjects).items() if name.isupper() and name.endswith(endings)}


def built_subjects() -> set[str]:
    """What each function of subjects.py that ends in `_subject` builds, as a pattern."""
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


def test_every_name_has_an_entry():
    """Each stream, subject, consumer and bucket has an entry, and there is no entry for anything else."""
    assert names() == entries().keys()


@pytest.mark.parametrize("name", sorted(entries()))
def test_entries_are_complete(name):
    """An entry says everything that a reader may ask: each aspect once, in one order, none empty."""
    aspects = entries()[name]
    assert ASPECTS == list(aspects)
    assert [] == [aspect for aspect, text in aspects.items() if not text.strip()]


def test_constants_are_all_accounted_for():
    """A new constant of subjects.py cannot be overlooked: each is of a kind that this module checks."""
    kinds = ("_STREAM", "_BUCKET", "_SERVICE", "_SUBJECT", "_SUBJECTS", "_HEADER", "_HEADER_PREFIX", "_PREFIX", "_KEY")
    public = {name for name in vars(subjects) if name.isupper() and not name.startswith("_")}
    assert public == constants(*kinds).keys()


def test_headers():
    """The table of headers has each header of subjects.py, and no other."""
    table = PAGE.read_text().split("| header | value |\n")[1].split("\n\n")[0]
    listed = [name.removesuffix("<name>") for name in re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)]
    assert sorted(constants("_HEADER", "_HEADER_PREFIX").values()) == sorted(listed)


def test_consumer_metadata():
    """The entry of the lane consumers names the key of their metadata."""
    assert f"`{subjects.DLQ_METADATA_KEY}`" in entries()[f"{subjects.LANE_CONSUMER_PREFIX}*"]["Schema"]


def test_answers():
    """The table of an answer about an update has each field of the reply, in its order."""
    table = PAGE.read_text().split("#### An answer about an update\n")[1].split("\n\n")[0]
    assert list(UpdateReply.__struct_fields__) == re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)


def test_receipts():
    """The entry of receipts names each of their fields, in their order."""
    schema = entries()["job.relayed.*"]["Schema"]
    fields = [name for name in re.findall(r"`(\w+)`", schema) if name in Receipt.__struct_fields__]
    assert list(Receipt.__struct_fields__) == fields


@pytest.mark.parametrize(("name", "kind"), [("job.query.*", QueryRequest), ("job.history.*", HistoryRequest)])
def test_requests(name, kind):
    """The entries of the status service name each field that a request may have."""
    schema = entries()[name]["Schema"]
    assert [] == [field for field in kind.__struct_fields__ if field not in schema]


@pytest.mark.parametrize("table", GENERATED)
def test_generated_tables(table):
    """The tables of streams and of fields say what provisioning makes and what the model holds."""
    written = between(table, PAGE.read_text())
    assert GENERATED[table]() == written, f"write it anew with: python {Path(__file__).relative_to(ROOT)}"


def main() -> None:
    text = PAGE.read_text()
    for name, table in GENERATED.items():
        mark = f"<!-- {name}: begin -->\n"
        text = text.replace(mark + between(name, text), mark + table())
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
