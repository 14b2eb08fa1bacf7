"""The simulator behaves as the protocol page says, row by row, for a plain WebSocket client with a real hotkey."""

import asyncio
import json
import signal
import socket
import struct
import sys
import time
from contextlib import asynccontextmanager

import pytest
from bittensor_wallet import Keypair
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from relay.contract.errors import LocalServerError
from relay.local import facilitator as local_facilitator
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import (
    ANSWER_TWICE,
    DROP_AFTER_STORING,
    DROP_BEFORE_STORING,
    EVERY_MESSAGE,
    NEVER_ANSWER,
    Moment,
    answer_late,
    close_with,
    refuse,
    stall,
)
from relay.local.ledger import DROPPED

HOTKEY = Keypair.create_from_uri("//Alice")
STRANGER = Keypair.create_from_uri("//Bob")
PUBLIC_KEY = HOTKEY.public_key.hex()
SUCCESS = {"status": "success", "errors": []}
HEARTBEAT = '{"message_type":"V0Heartbeat"}'


def job(number: int = 1) -> str:
    return f"abcdef00-0000-4000-8000-{number:012x}"


def update(status: object = "accepted", metadata: object = None, uuid: object = job(), **changes: object) -> str:
    """An update as JSON; a field whose value is `...` is left out."""
    fields = {"message_type": "V0JobStatusUpdate", "uuid": uuid, "status": status, "metadata": metadata} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def authentication(hotkey: Keypair = HOTKEY, **changes: object) -> str:
    key = hotkey.public_key
    fields = {
        "message_type": "V0AuthenticationRequest",
        "public_key": key.hex(),
        "signature": "0x" + hotkey.sign(key).hex(),
    }
    return json.dumps(fields | changes)


def client(simulator, url: str | None = None):
    return connect(url or simulator.url, max_size=64 * 2**20, compression=None, proxy=None)


@asynccontextmanager
async def validator(simulator):
    """An authenticated connection."""
    async with client(simulator) as connection:
        assert SUCCESS == await ask(connection, authentication())
        yield connection


async def answer(connection) -> dict:
    return json.loads(await connection.recv())


async def ask(connection, message: str | bytes) -> dict:
    await connection.send(message)
    return await answer(connection)


async def error_types(connection, message: str | bytes) -> list[str]:
    reply = await ask(connection, message)
    assert "error" == reply["status"]
    return [each["type"] for each in reply["errors"]]


async def code_after(connection, message: str | bytes | None = None) -> int:
    """The close code with which the connection ends without another reply; 1006 means a drop."""
    if message is not None:
        await connection.send(message)
    with pytest.raises(ConnectionClosed):
        await connection.recv()
    return connection.close_code


def stored(simulator) -> list[tuple[str, str]]:
    return [(row.uuid, row.status) for row in simulator.rows]


@pytest.fixture
async def simulator():
    async with FacilitatorSimulator({PUBLIC_KEY}) as running:
        yield running


@pytest.fixture
async def connection(simulator):
    async with validator(simulator) as authenticated:
        yield authenticated


# The conversation.


@pytest.mark.parametrize("path", ["/ws/v0", "/", "/ws/v1/"])
async def test_only_the_exact_path_upgrades(simulator, path):
    """A path without the trailing slash, or any other path, gets HTTP 500."""
    with pytest.raises(InvalidStatus) as refused:
        await client(simulator, simulator.url.replace("/ws/v0/", path))
    assert 500 == refused.value.response.status_code


async def test_wrong_signature(simulator):
    """A signature with another key gets auth.signature_invalid and close code 3000."""
    async with client(simulator) as connection:
        forged = authentication(signature="0x" + STRANGER.sign(HOTKEY.public_key).hex())
        assert ["auth.signature_invalid"] == await error_types(connection, forged)
        assert 3000 == await code_after(connection)


async def test_unknown_validator(simulator):
    """A valid signature with the key of no active validator gets auth.validator_not_found and close code 3001."""
    async with client(simulator) as connection:
        assert ["auth.validator_not_found"] == await error_types(connection, authentication(STRANGER))
        assert 3001 == await code_after(connection)


@pytest.mark.parametrize(
    "changes",
    [
        {"public_key": "not hex"},
        {"public_key": "0x" + PUBLIC_KEY},
        {"public_key": PUBLIC_KEY[:-2]},
        {"signature": "0xnot hex"},
        {"signature": HOTKEY.sign(HOTKEY.public_key).hex()},
        {"signature": "0x00"},
    ],
    ids=["key not hex", "key with prefix", "key too short", "signature not hex", "no prefix", "signature too short"],
)
async def test_malformed_authentication_drops(simulator, changes):
    """A key or signature that is not hex, or has the wrong prefix, drops the connection."""
    async with client(simulator) as connection:
        assert DROPPED == await code_after(connection, authentication(**changes))


async def test_second_authentication(connection):
    """A second authentication gets an error, and the connection goes on."""
    assert ["auth.already_authenticated"] == await error_types(connection, authentication())
    assert SUCCESS == await ask(connection, update())


async def test_update_before_authentication(simulator):
    """An update before authentication gets auth.not_authenticated and is not stored."""
    async with client(simulator) as connection:
        assert ["auth.not_authenticated"] == await error_types(connection, update())
        assert SUCCESS == await ask(connection, authentication())
    assert [] == simulator.rows


async def test_behind_a_trusted_proxy():
    """Without validators each connection is authenticated from the start."""
    async with FacilitatorSimulator() as simulator, client(simulator) as connection:
        assert SUCCESS == await ask(connection, update())
        assert ["auth.already_authenticated"] == await error_types(connection, authentication())


async def test_heartbeat_gets_no_reply(simulator, connection):
    """A heartbeat is recorded and not answered, nor are machine specs: the next reply belongs to the next update."""
    await connection.send(HEARTBEAT)
    await connection.send('{"message_type":"V0MachineSpecsUpdate","specs":{"cpu":{}}}')
    assert ["job.integrity_error"] == await error_types(connection, update("sent"))
    assert 1 == simulator.heartbeats


async def test_pushes_reach_every_authenticated_connection(simulator, connection):
    """Pushes come on each authenticated connection, between replies, and on no other connection."""
    async with validator(simulator) as second, client(simulator) as unauthenticated:
        with simulator.inject(stall()) as held:
            await connection.send(update())
            await simulator.wait_for(lambda _: held.hits == 1)
            assert 2 == await simulator.push_job_request(job(7), docker_image="img")
            assert 2 == await simulator.push_cheated(job(7))
            requests = [await answer(each) for each in (connection, second)]
            reports = [await answer(each) for each in (connection, second)]
        assert SUCCESS == await answer(connection)
        assert ["auth.not_authenticated"] == await error_types(unauthenticated, update())
    assert [("V2JobRequest", "job.new", job(7), "img")] * 2 == [
        (push["message_type"], push["type"], push["uuid"], push["docker_image"]) for push in requests
    ]
    assert [{"message_type": "V0JobCheated", "type": "job.cheated", "job_uuid": job(7)}] * 2 == reports


# Replies that were seen.


async def test_known_job(simulator, connection):
    """An update for a known job succeeds and is stored as sent, with when and where it came."""
    metadata = {
        "note": "ü",
        "miner_response": {"docker_process_stderr": "", "docker_process_stdout": "x", "extra": [1]},
    }
    before_s = time.monotonic()
    assert SUCCESS == await ask(connection, update("accepted", metadata))
    (row,) = simulator.rows
    assert (job(), "accepted", 1, metadata) == (row.uuid, row.status, row.connection, row.metadata)
    assert before_s <= row.arrived_s <= time.monotonic()


async def test_repeated_status(simulator, connection):
    """The same job and status again is job.integrity_error, whatever the metadata and the connection."""
    await ask(connection, update("accepted"))
    async with validator(simulator) as second:
        assert ["job.integrity_error"] == await error_types(second, update("accepted", {"a": 1}))
        assert ["job.integrity_error"] == await error_types(second, update("accepted", uuid=job().upper()))
    assert [(job(), "accepted")] == stored(simulator)


async def test_status_sent(simulator, connection):
    """Status `sent` is job.integrity_error: the Facilitator makes that row itself."""
    assert ["job.integrity_error"] == await error_types(connection, update("sent"))
    assert [] == simulator.rows


async def test_unknown_job(simulator, connection):
    """An unknown job is job.not_found until it becomes known."""
    simulator.unknown_jobs.add(job())
    assert ["job.not_found"] == await error_types(connection, update())
    simulator.unknown_jobs.discard(job())
    assert SUCCESS == await ask(connection, update())


@pytest.mark.parametrize(
    ("message", "types"),
    [
        (update(uuid=...), ["missing"]),
        (update(status=...), ["missing"]),
        (update(uuid=5), ["string_type"]),
        (update(more=1), ["extra_forbidden"]),
        (update(metadata={"streaming_details": {"more": 1}}), ["extra_forbidden"]),
        (update(metadata={"miner_response": {"docker_process_stdout": "x"}}), ["missing"]),
        (update(metadata={"job_failure_details": {"message": "m"}}), ["missing", "missing"]),
        ("", ["json_invalid"]),
        ("not JSON", ["json_invalid"]),
        ('{"message_type":"V0JobStatusUpdate","uuid":"\\ud800"}', ["json_invalid"]),
        (update(metadata="?").replace('"?"', '{"a":' * 5000 + "1" + "}" * 5000), ["json_invalid"]),
        ("{}", ["union_tag_not_found"]),
        (update(message_type="V9Nonsense"), ["union_tag_invalid"]),
        (update().encode(), ["json_type"]),
    ],
    ids=str,
)
async def test_invalid_messages(simulator, connection, message, types):
    """An invalid message gets pydantic's error types, is not stored, and leaves the connection open."""
    assert types == await error_types(connection, message)
    assert [] == simulator.rows
    assert SUCCESS == await ask(connection, update())


@pytest.mark.parametrize("status", ["nonsense", "unknown", "ACCEPTED", 5, None, ["accepted"]])
async def test_unknown_status(simulator, connection, status):
    """An unknown status succeeds and is stored as `unknown`."""
    assert SUCCESS == await ask(connection, update(status))
    assert [(job(), "unknown")] == stored(simulator)


async def test_unknown_texts_in_metadata(simulator, connection):
    """Unknown texts in the metadata's enumerations are stored as `unknown`, and so are values that are no texts."""
    details = {"reason": "moon phase", "stage": "execution", "message": "m"}
    assert SUCCESS == await ask(connection, update("failed", {"job_failure_details": details}))
    assert {"job_failure_details": details | {"reason": "unknown"}} == simulator.rows[0].metadata
    details = {"reported_by": "miner", "reason": None, "message": "m"}
    assert SUCCESS == await ask(connection, update("horde_failed", {"horde_failure_details": details}))
    assert {"horde_failure_details": details | {"reason": "unknown"}} == simulator.rows[1].metadata


@pytest.mark.parametrize(
    "message",
    [
        update(uuid="not-a-uuid"),
        update(metadata={"miner_response": {"docker_process_stderr": "", "docker_process_stdout": "a\0b"}}),
        update(metadata={"deep": [{"a\0": 1}]}),
        update(metadata={"x": float("nan")}),
        update(metadata={"x": [float("inf")]}),
        update(metadata={"x": float("-inf")}),
        update(metadata={"x": "?"}).replace('"?"', "1e999"),
    ],
    ids=["uuid", "NUL in stdout", "NUL in a key", "NaN", "Infinity", "-Infinity", "1e999"],
)
async def test_drop_with_nothing_stored(simulator, message):
    """What PostgreSQL cannot store drops the connection every time, and stores nothing."""
    for _ in range(2):
        async with validator(simulator) as connection:
            assert DROPPED == await code_after(connection, message)
    assert [] == simulator.rows


@pytest.mark.parametrize(
    "message",
    [
        update("completed", None),
        update("completed", ...),
        update("streaming_ready", None),
        update("streaming_ready", {"streaming_details": {"streaming_server_port": 2**40}}),
    ],
    ids=["completed null", "completed absent", "streaming_ready null", "port 2^40"],
)
async def test_drop_with_the_row_stored(simulator, message):
    """These are stored before the drop, so to send them again gives job.integrity_error."""
    async with validator(simulator) as connection:
        assert DROPPED == await code_after(connection, message)
    assert [(job(), json.loads(message)["status"])] == stored(simulator)
    async with validator(simulator) as connection:
        assert ["job.integrity_error"] == await error_types(connection, message)


STREAMING = {"streaming_server_cert": "pem", "streaming_server_address": "::1", "streaming_server_port": 7}


@pytest.mark.parametrize("missing", list(STREAMING))
@pytest.mark.parametrize("how", ["absent", "null"])
async def test_streaming_details_with_a_gap(simulator, connection, missing, how):
    """With a null or absent member the row is stored, but the job's own row is not, and the answer is an error."""
    details = {key: value for key, value in STREAMING.items() if key != missing}
    message = update("streaming_ready", {"streaming_details": details | ({missing: None} if how == "null" else {})})
    assert ["job.integrity_error"] == await error_types(connection, message)
    assert ([(job(), "streaming_ready")], {}) == (stored(simulator), simulator.ledger.streaming)


@pytest.mark.parametrize("details", [STREAMING, dict(zip(STREAMING, ("", "", 0), strict=True))])
async def test_complete_streaming_details(simulator, connection, details):
    """With all members, even empty ones, the job's own row has them, too."""
    assert SUCCESS == await ask(connection, update("streaming_ready", {"streaming_details": details}))
    assert {job(): tuple(details.values())} == simulator.ledger.streaming


@pytest.mark.parametrize("status", ["completed", "streaming_ready"])
async def test_empty_metadata_is_enough(connection, status):
    """With `{}` as metadata the same statuses succeed."""
    assert SUCCESS == await ask(connection, update(status, {}))


async def test_duplicate_keys(simulator, connection):
    """Of duplicate keys the first one wins, at every depth."""
    message = update("accepted", {"a": "?"}).replace('"?"', '{"b": 1, "b": 2}')
    assert SUCCESS == await ask(connection, message.replace('"accepted"', '"accepted", "status": "failed"'))
    assert [("accepted", {"a": {"b": 1}})] == [(row.status, row.metadata) for row in simulator.rows]


async def test_states_in_any_order(simulator, connection):
    """States are stored in the order of arrival, and the last one is the current one."""
    for status in ("execution_done", "completed", "accepted"):
        assert SUCCESS == await ask(connection, update(status, {}))
    assert ["execution_done", "completed", "accepted"] == [row.status for row in simulator.rows_of(job())]
    assert "accepted" == simulator.current_status(job())
    assert None is simulator.current_status(job(2))


async def test_largest_frame():
    """A frame of 16,777,216 bytes is accepted; one byte more closes the connection with 1009."""
    padding = 16_777_216 - len(update(metadata={"x": ""}))
    async with FacilitatorSimulator() as simulator:
        # Not closed again: CPython 3.11 fails in transport.abort() if unsent bytes are left.
        connection = await client(simulator)
        assert SUCCESS == await ask(connection, update(metadata={"x": "a" * padding}))
        assert 1009 == await code_after(connection, update(metadata={"x": "a" * (padding + 1)}))


async def test_error_echoes_the_message(connection):
    """The error reply to an invalid message of 2 MB contains all of it."""
    text = "a" * 2_000_000
    reply = await ask(connection, update(more=text))
    assert [text] == [each["input"] for each in reply["errors"]]


async def test_pipelining_keeps_order(simulator, connection):
    """200 updates that are sent without waiting get 200 replies, strictly in order."""
    simulator.unknown_jobs.update(job(number) for number in range(0, 200, 3))
    for number in range(200):
        await connection.send(update(uuid=job(number)))
    replies = [await answer(connection) for _ in range(200)]
    assert [number % 3 > 0 for number in range(200)] == [reply == SUCCESS for reply in replies]


async def test_drop_in_a_pipeline(simulator, connection):
    """If the 10th of 20 updates drops the connection, 9 are answered, and 11 to 20 are lost."""
    for number in range(20):
        await connection.send(update(uuid="bad" if number == 9 else job(number)))
    assert [SUCCESS] * 9 == [await answer(connection) for _ in range(9)]
    assert DROPPED == await code_after(connection)
    assert [(job(number), "accepted") for number in range(9)] == stored(simulator)


async def test_reset_after_a_pipeline(simulator, connection):
    """After a TCP reset directly after 40 updates, the first of them are stored, without gaps."""
    for number in range(40):
        await connection.send(update(uuid=job(number)))
    linger = struct.pack("ii", 1, 0)
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.transport.abort()
    await simulator.wait_for(lambda sim: sim.connections == 0)
    assert [(job(number), "accepted") for number in range(len(simulator.rows))] == stored(simulator)


# Limits and outages.


async def test_33_unanswered_updates_are_read():
    """With 33 unanswered updates the server still reads, so it answers pings, and later all updates."""
    async with FacilitatorSimulator() as simulator, client(simulator) as connection:
        with simulator.inject(stall()):
            for number in range(33):
                await connection.send(update(uuid=job(number)))
            for _ in range(2):  # the first ping may have been read together with the updates
                await (await connection.ping())
        assert [SUCCESS] * 33 == [await answer(connection) for _ in range(33)]


async def test_34_unanswered_updates_starve_the_keepalive():
    """With 34 unanswered updates the server stops reading, misses the pong, and closes with 1011."""
    impatient = FacilitatorSimulator(ping_interval_s=0.1, ping_timeout_s=0.1)
    async with impatient as simulator, client(simulator) as connection:
        simulator.inject(stall())
        for number in range(34):
            await connection.send(update(uuid=job(number)))
        assert 1011 == await code_after(connection)


async def test_service_time():
    """Updates of one connection are handled one after another, each taking the service time."""
    async with FacilitatorSimulator(service_time_s=0.02) as simulator, client(simulator) as connection:
        started_s = time.monotonic()
        for number in range(5):
            await connection.send(update(uuid=job(number)))
        assert [SUCCESS] * 5 == [await answer(connection) for _ in range(5)]
        assert time.monotonic() - started_s >= 0.1


async def test_no_heartbeat():
    """A connection whose last heartbeat is older than the limit is closed with 3001."""
    async with FacilitatorSimulator(heartbeat_limit_s=1.2) as simulator, client(simulator) as connection:
        simulator.inject(answer_late(0.2))
        await ask(connection, update())
        sent_s = time.monotonic()
        assert 3001 == await code_after(connection, HEARTBEAT)
        assert time.monotonic() - sent_s >= 1.2


async def test_removed_validator(simulator, connection):
    """The connection of a removed validator is closed with 3001, and a new one is refused."""
    await simulator.remove_validator(PUBLIC_KEY)
    assert 3001 == await code_after(connection)
    async with client(simulator) as second:
        assert ["auth.validator_not_found"] == await error_types(second, authentication())


@pytest.mark.parametrize(("ended", "seen"), [(1012, 1012), (DROPPED, 1006)], ids=["restart", "killed"])
async def test_away_and_back(simulator, connection, ended, seen):
    """A restart closes with 1012, a kill drops; then connections are refused until it is back on the same port."""
    url = simulator.url
    await simulator.away(ended)
    assert seen == await code_after(connection)
    with pytest.raises(ConnectionRefusedError):
        await client(simulator, url)
    await simulator.back()
    assert url == simulator.url
    async with validator(simulator) as second:
        assert SUCCESS == await ask(second, update())


async def test_away_can_leave_connections(simulator, connection):
    """To refuse new connections does not end the open ones."""
    await simulator.away()
    with pytest.raises(ConnectionRefusedError):
        await client(simulator)
    assert SUCCESS == await ask(connection, update())


async def test_database_down(simulator, connection):
    """With the database down a heartbeat drops the connection, and a new one is dropped at authentication."""
    with simulator.database_down():
        assert DROPPED == await code_after(connection, HEARTBEAT)
        async with client(simulator) as second:
            assert DROPPED == await code_after(second, authentication())
    async with validator(simulator) as third:
        assert SUCCESS == await ask(third, update())


async def test_cache_down(simulator, connection):
    """With the cache down every connection is dropped at once, and so is each new one."""
    with simulator.cache_down():
        assert DROPPED == await code_after(connection)
        async with client(simulator) as second:
            assert DROPPED == await code_after(second)
    async with validator(simulator) as third:
        assert SUCCESS == await ask(third, update())


@pytest.mark.parametrize("code", [1001, 1009, 1011, 1012, 3000, 3001, DROPPED])
async def test_close_all(simulator, connection, code):
    """All connections can be closed with any code, or dropped, and new ones are accepted."""
    async with validator(simulator) as second:
        await simulator.close_all(code)
        assert [code, code] == [await code_after(connection), await code_after(second)]
    async with validator(simulator):
        assert 1 == simulator.authenticated


# Faults.


async def test_drop_at_the_nth_update(simulator, connection):
    """A fault for the nth update counts from when it is injected."""
    await ask(connection, update(uuid=job(1)))
    simulator.inject(DROP_BEFORE_STORING, nth=2)
    assert SUCCESS == await ask(connection, update(uuid=job(2)))
    assert DROPPED == await code_after(connection, update(uuid=job(3)))
    assert [(job(1), "accepted"), (job(2), "accepted")] == stored(simulator)


async def test_drop_after_storing(simulator, connection):
    """A drop after storing leaves the row and no reply."""
    simulator.inject(DROP_AFTER_STORING, status="failed")
    assert SUCCESS == await ask(connection, update("accepted"))
    assert DROPPED == await code_after(connection, update("failed"))
    assert [(job(), "accepted"), (job(), "failed")] == stored(simulator)


async def test_poison(simulator):
    """A permanent fault for one job hits each of its updates, and no other job's."""
    poison = simulator.inject(DROP_BEFORE_STORING, uuid=job(1), times=None)
    for _ in range(3):
        async with validator(simulator) as connection:
            assert SUCCESS == await ask(connection, update("unknown", uuid=job(simulator.accepted + 1)))
            assert DROPPED == await code_after(connection, update(uuid=job(1).upper()))
    assert 3 == poison.hits


async def test_inserts_fail(simulator):
    """While INSERTs fail, each update drops the connection, a repeat as well; the sign-in and unknown jobs do not."""
    async with validator(simulator) as connection:
        assert SUCCESS == await ask(connection, update(uuid=job(1)))
    simulator.unknown_jobs.add(job(3))
    with simulator.inserts_fail() as fault:
        for number in (1, 2):
            async with validator(simulator) as connection:
                assert ["job.not_found"] == await error_types(connection, update(uuid=job(3)))
                assert DROPPED == await code_after(connection, update(uuid=job(number)))
    async with validator(simulator) as connection:
        assert SUCCESS == await ask(connection, update(uuid=job(2)))
    assert (4, [(job(1), "accepted"), (job(2), "accepted")]) == (fault.hits, stored(simulator))


async def test_stall(simulator, connection):
    """While stalled, the server stores and answers nothing on that connection, until the fault is lifted."""
    held = simulator.inject(stall())
    for number in range(3):
        await connection.send(update(uuid=job(number)))
    await simulator.wait_for(lambda _: held.hits == 1)
    async with validator(simulator) as second:
        assert SUCCESS == await ask(second, update(uuid=job(9)))
    assert [(job(9), "accepted")] == stored(simulator)
    held.lift()
    assert [SUCCESS] * 3 == [await answer(connection) for _ in range(3)]


async def test_stall_outlives_its_connection(simulator, connection):
    """An update that is held while its connection ends is stored when the fault is lifted."""
    held = simulator.inject(stall())
    await connection.send(update())
    await simulator.wait_for(lambda _: held.hits == 1)
    await simulator.close_all(1012)
    assert (0, []) == (simulator.connections, simulator.rows)
    held.lift()
    await simulator.wait_for(lambda sim: stored(sim) == [(job(), "accepted")])
    async with validator(simulator) as second:
        assert ["job.integrity_error"] == await error_types(second, update())


async def test_stall_for_a_time(simulator, connection):
    """A stall can be limited in time."""
    simulator.inject(stall(0.05))
    sent_s = time.monotonic()
    assert SUCCESS == await ask(connection, update())
    assert simulator.rows[0].arrived_s - sent_s < 0.05 <= time.monotonic() - sent_s


async def test_late_answer(simulator, connection):
    """A late answer comes after the row was stored."""
    held = simulator.inject(answer_late(float("inf")))
    await connection.send(update())
    await simulator.wait_for(lambda sim: len(sim.rows) == 1)
    assert 1 == simulator.replies["success"]  # this is the reply to the authentication
    held.lift()
    assert SUCCESS == await answer(connection)


async def test_never_answer(simulator, connection):
    """An update that is never answered is stored, and the next reply belongs to the next update."""
    simulator.inject(NEVER_ANSWER)
    await connection.send(update("accepted"))
    assert ["job.integrity_error"] == await error_types(connection, update("accepted"))


async def test_answer_twice(simulator, connection):
    """An answer can come twice."""
    simulator.inject(ANSWER_TWICE)
    assert [SUCCESS, SUCCESS] == [await ask(connection, update()), await answer(connection)]
    assert ["job.integrity_error"] == await error_types(connection, update())


async def test_close_at_an_update(simulator, connection):
    """An update can lead to a close code instead of an answer."""
    simulator.inject(close_with(1011), nth=2)
    await ask(connection, update("accepted"))
    assert 1011 == await code_after(connection, update("failed"))
    assert [(job(), "accepted")] == stored(simulator)


async def test_refuse(simulator, connection):
    """An update can be refused with any error type, a number of times."""
    simulator.inject(refuse("server.tired"), times=2)
    assert [["server.tired"]] * 2 == [await error_types(connection, update()) for _ in range(2)]
    assert SUCCESS == await ask(connection, update())
    assert {"success": 2, "injected": 2} == simulator.replies


async def test_faults_befall_other_moments(simulator):
    """Faults are not only for updates: here the authentication is never answered, and an invalid message drops."""
    simulator.inject(NEVER_ANSWER, at=(Moment.AUTHENTICATION,))
    simulator.inject(DROP_BEFORE_STORING, at=(Moment.INVALID,))
    async with client(simulator) as connection:
        await connection.send(authentication())
        assert SUCCESS == await ask(connection, update())
        assert DROPPED == await code_after(connection, "nonsense")


async def test_first_injection_acts(simulator, connection):
    """If two faults match, both are counted, and the older one is applied."""
    older = simulator.inject(refuse("older"), at=EVERY_MESSAGE)
    newer = simulator.inject(refuse("newer"), times=2)
    assert ["older"] == await error_types(connection, update())
    assert ["newer"] == await error_types(connection, update())
    assert (1, 2) == (older.hits, newer.hits)


# What tests and the demo read, and running it as a program.


async def test_observation(simulator, connection):
    """Each row is reported at once, and frames, replies and connections are counted."""
    told = []
    simulator.on_row = told.append
    await ask(connection, update())
    await ask(connection, update())
    assert simulator.rows == told
    assert [update(), update()] == list(simulator.received)[1:]
    assert {"success": 2, "job.integrity_error": 1} == simulator.replies
    assert (1, 1, 1) == (simulator.connections, simulator.authenticated, simulator.accepted)


async def test_large_frames_are_not_kept_for_ever(simulator, connection, monkeypatch):
    """Of the frames that it has received, only the latest are kept, by number and by size."""
    monkeypatch.setattr(local_facilitator, "_KEPT_SIZE", 3 * len(update()))
    for _ in range(5):
        await ask(connection, update())
    assert 3 == len(simulator.received)


async def test_wait_for_says_what_there_is(simulator):
    """If the condition does not come true, the TimeoutError shows the simulator's state."""
    with pytest.raises(TimeoutError, match=r"not so after 0\.01 s: <FacilitatorSimulator ws://.* rows=0 "):
        await simulator.wait_for(lambda sim: len(sim.rows) == 1, timeout_s=0.01)


async def test_port_in_use(simulator):
    """A port that is in use is reported as such."""
    port = int(simulator.url.split(":")[2].partition("/")[0])
    with pytest.raises(LocalServerError, match=f"cannot listen on 127.0.0.1:{port}"):
        await FacilitatorSimulator(port=port).__aenter__()


async def test_stopping_ends_everything():
    """The end of the block ends connections, held updates and the listener; held updates are not stored."""
    async with FacilitatorSimulator() as simulator:
        connection = await client(simulator)
        held = simulator.inject(stall())
        await connection.send(update())
        await simulator.wait_for(lambda _: held.hits == 1)
    assert DROPPED == await code_after(connection)
    assert (0, []) == (simulator.connections, simulator.rows)
    with pytest.raises(ConnectionRefusedError):
        await client(simulator)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_as_a_program(number):
    """As a program it prints its URL on one line, serves, and ends cleanly on SIGTERM and SIGINT."""
    command = ("-m", "relay.local.facilitator", "--port", "0", "--auth", "none")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    url = (await process.stdout.readline()).decode().strip()
    async with client(None, url) as connection:
        assert SUCCESS == await ask(connection, update())
        process.send_signal(number)
        assert (b"", b"") == await process.communicate()
    assert 0 == process.returncode
