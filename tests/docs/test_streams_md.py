"""docs/streams.md, compared with the table of fields. Run this file as a script to write its tables again."""

from collections.abc import Mapping

from pages import ROOT, between

from relay.topology.comparison import Config
from relay.topology.fields import CONSUMER_FIELDS, STREAM_FIELDS, Field, Owner
from relay.topology.provision import DEAD_LETTER_ROOM, Topology, wanted

PAGE = ROOT / "docs/streams.md"
WANTED = wanted(Topology(lanes=1, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=5), 4 * DEAD_LETTER_ROOM)


def whose(name: str, field: Field, configs: Mapping[str, Config]) -> str:
    compared = [f"`{each}`" for each, config in configs.items() if name in config]
    if field.owner is Owner.OURS or not compared:
        return field.owner
    return f"{field.owner}; ours in {', '.join(compared)}"


def does(field: Field) -> str:
    if field.owner is Owner.OURS:
        return "put back"
    return "kept" if field.owner is Owner.YOURS else field.remedy


def table(fields: Mapping[str, Field], configs: Mapping[str, Config]) -> str:
    """The table of one kind as the page must have it."""
    rows = [("field", "whose", "provisioning", "why"), ("---",) * 4]
    for name, field in fields.items():
        where = f" ({', '.join(f'`{each}`' for each in sorted(field.streams))})" if field.streams else ""
        rows.append((f"`{name}`", whose(name, field, configs) + where, does(field), field.why))
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


TABLES = {
    "stream fields": table(STREAM_FIELDS, WANTED.streams),
    "consumer fields": table(CONSUMER_FIELDS, WANTED.consumers),
}


def test_fields():
    """The page has each field with its owner, what provisioning does about it, and why."""
    page = PAGE.read_text()
    found = {name: between(name, page) for name in TABLES}
    assert found == TABLES, f"run python tests/docs/{PAGE.stem}"


if __name__ == "__main__":
    text = PAGE.read_text()
    for name, made in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        text = begin.join([text.partition(begin)[0], made + end + text.partition(end)[2]])
    PAGE.write_text(text)
