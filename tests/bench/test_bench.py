"""The parts of the benchmarks on which figures depend: what is published, and how figures are made from times."""

import json
import socket
import threading
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import nats_line, report
from bench.figures import QUANTILES, Pairs, Spread, quantiles, read_pairs, spread
from bench.load import body, job_uuids, payload, sent_ns_of
from bench.nats_line import UpdateLine
from bench.systems import SYSTEMS
from relay.contract.subjects import is_job_uuid
from relay.contract.wire import Frame, decode

MS = 1_000_000


def test_jobs_have_ids_that_the_relay_takes():
    """Every id is a version 4 UUID in the relay's spelling, and no two are the same."""
    uuids = job_uuids(1000)

    assert [True] * 1000 == [is_job_uuid(uuid) for uuid in uuids]
    assert {4} == {UUID(uuid).version for uuid in uuids}
    assert 1000 == len(set(uuids))


def test_a_system_and_the_publisher_agree_on_the_jobs():
    """The first jobs are the same ones, however many jobs a process asks for."""
    assert job_uuids(10) == job_uuids(1000)[:10]


@given(st.integers(0, 2**63 - 1))
def test_updates_pass_the_relay_as_they_are(sent_ns: int):
    """The relay forwards an update of the benchmarks unchanged, without a repair; it has nearly 250 bytes."""
    (uuid,) = job_uuids(1)
    update = body(uuid, sent_ns)

    frame = decode(update, uuid)

    assert isinstance(frame, Frame)
    assert update is frame.text
    assert () == frame.repairs
    assert 250 == len(update)


@given(st.integers(0, 2**63 - 1))
def test_the_time_survives_serialising_again(sent_ns: int):
    """The time is found in the update's own bytes, and in those that any JSON library makes of it."""
    (uuid,) = job_uuids(1)

    assert sent_ns == sent_ns_of(body(uuid, sent_ns))
    assert sent_ns == sent_ns_of(json.dumps(payload(uuid, sent_ns), indent=2).encode())


def test_a_heartbeat_is_no_update():
    """A message without a time is not taken for an update."""
    assert sent_ns_of(b'{"message_type":"V0Heartbeat"}') is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_a_quantile_covers_its_part(values: list[float]):
    """The quantile q is the smallest value that at least the part q of all values does not exceed."""
    for q, quantile in zip(QUANTILES, quantiles(values), strict=True):
        assert quantile in values
        assert sum(value <= quantile for value in values) >= q * len(values) - 1e-9
        assert sum(value < quantile for value in values) <= q * len(values) + 1e-9


def test_nothing_has_no_quantiles():
    """Without values there is an error, not a figure."""
    with pytest.raises(ValueError, match="no quantiles"):
        quantiles([])


def test_recorded_pairs_are_read_back(tmp_path):
    """A file of (sent, arrived) pairs comes back in the order of arrival."""
    with (tmp_path / "pairs").open("wb") as file:
        array("q", [1, 5, 2, 7]).tofile(file)

    assert Pairs(array("q", [1, 2]), array("q", [5, 7])) == read_pairs(tmp_path / "pairs")


def test_latency_and_duplicates():
    """Latencies are in milliseconds; an update that arrives again counts as a duplicate."""
    pairs = Pairs([0, 1 * MS, 0], [2 * MS, 4 * MS, 6 * MS])

    assert [2.0, 3.0, 6.0] == pairs.latencies_ms
    assert 1 == pairs.duplicates


def test_throughput_leaves_the_start_out():
    """The first tenth of the arrivals, however slow, does not change the throughput."""
    slow_start = [0] + [60_000 * MS + n * 1000 * MS for n in range(10)]

    assert 1.0 == Pairs(range(11), slow_start).per_s


def test_throughput_of_too_little():
    """A single arrival has no throughput."""
    assert 0.0 == Pairs([0], [1]).per_s


def test_recovery_ends_with_the_last_late_update():
    """Recovery ends with the last arrival that was too late: not with the last arrival, nor with the latest one."""
    pairs = Pairs([50 * MS, 100 * MS, 900 * MS], [700 * MS, 600 * MS, 901 * MS])

    assert 700 * MS == pairs.last_late_ns(100)
    assert pairs.last_late_ns(1000) is None


def test_rounds_are_summed_up_by_their_median():
    """With an even number of rounds, the median is between the two in the middle."""
    assert Spread(2.5, 1.0, 9.0) == spread([9.0, 1.0, 3.0, 2.0])
    assert Spread(3.0, 1.0, 9.0) == spread([9.0, 1.0, 3.0])


def row(system: str, *, round_: int, per_s: float, problem: str | None = None) -> report.Row:
    costs = {"cpu_us": per_s and 20.0, "broker_cpu_us": per_s and 30.0, "resident_mib": per_s and 40.0}
    return {"system": system, "round": round_, "per_s": per_s, "problem": problem} | costs


def test_a_system_that_could_not_be_measured_keeps_its_row():
    """A failed round stays in the table, with the reason; the median is that of the rounds with a figure."""
    rows = [
        row("floor_forward", round_=0, per_s=40_000.0),
        row("relay", round_=0, per_s=20_000.0),
        row("relay", round_=1, per_s=24_000.0),
        row("relay", round_=2, per_s=0.0, problem="it caught fire"),
        row("celery", round_=0, per_s=0.0, problem="there is no redis-server on PATH"),
    ]

    table = report.saturation_table(rows)

    assert [SYSTEMS[name].title for name in ("floor_forward", "relay", "celery")] == [line[0] for line in table[1:]]
    assert ["22,000 (20,000-24,000)", "0.55"] == table[2][1:3]
    assert "" == table[1][-1]
    assert "it caught fire (this or the like in 1 of 3 rounds)" == table[2][-1]
    why_not = "there is no redis-server on PATH (this or the like in 1 of 1 rounds)"
    assert ["-", "-", "-", "-", "-", why_not] == table[3][1:]


def test_what_there_is_to_say_stands_below_the_table():
    """A remark is numbered in its row, and written out once for all its rows."""
    table = [["system", ""], ["a", "slow"], ["b", ""], ["c", "slow"]]

    assert ["a       [1]", "b", "c       [1]", "[1] slow"] == report.text(table).splitlines()[1:]
    assert ["| a | [1] |", "| b |  |", "| c | [1] |", "", "[1] slow"] == report.markdown(table).splitlines()[2:]


@contextmanager
def scripted_server(answers: bytes) -> Iterator[str]:
    """A NATS server that answers the first PING, then sends `answers`, then answers the second PING."""

    def serve() -> None:
        connection, _ = listening.accept()
        connection.settimeout(10)
        with connection, connection.makefile("rb") as sent:
            assert any(line == b"PING\r\n" for line in sent)
            connection.sendall(b"INFO {}\r\nPONG\r\n")
            assert any(line == b"PING\r\n" for line in sent)
            connection.sendall(answers + b"PONG\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve)
        server.start()
        yield f"nats://127.0.0.1:{listening.getsockname()[1]}"
        server.join(5)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_pub_acks_are_counted_however_they_are_cut(chunk: int, monkeypatch):
    """PubAcks and refusals are distinguished, and each is counted once, wherever the byte stream is cut."""
    stored = b'{"stream":"JOB_STATUS","seq":1}'
    refused = b'{"error":{"code":503},"stream":"","seq":0}'
    answers = b"".join(b"MSG _INBOX.bench 1 %d\r\n%b\r\n" % (len(body), body) for body in (stored, refused, stored))
    monkeypatch.setattr(nats_line, "READ_BYTES", chunk)
    with scripted_server(answers) as url, closing(UpdateLine(url, confirmed=True)) as line:
        line.published = 4

        line.flush(5)

    assert (2, 1, 1) == (line.acked, line.refused, line.outstanding)
