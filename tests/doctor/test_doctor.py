"""`relay doctor` with real servers: what it finds, and that it changes nothing."""

import asyncio
import functools
import json
import socket
from collections.abc import AsyncIterator

import pytest
from bittensor_wallet import Keypair
from cli_kit import hotkey_file, make_command
from guarded_nats import ANYBODY, variables
from relay_kit import Scene, new_job
from tcp_server import tcp_server

from relay.cli import doctor
from relay.contract.errors import BrokerUnavailable
from relay.contract.settings import FacilitatorSettings, NatsSettings
from relay.contract.subjects import (
    DLQ_STREAM,
    LEASE_STREAM,
    STATUS_STREAM,
    api_consumer_info,
    api_stream_info,
    lane_consumer,
)
from relay.doctor import checks
from relay.doctor.facilitator_checks import check_facilitator, check_hotkey
from relay.doctor.findings import fail
from relay.doctor.permission_check import needs
from relay.doctor.state_checks import STATE_CHECKS
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import DROP_BEFORE_STORING, Moment, stall
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request

HOTKEY = Keypair.create_from_uri("//Alice")
STRANGER = Keypair.create_from_uri("//Stranger")
NOWHERE = "nats://127.0.0.1:1"
ON_NATS = ("permissions", "topology", *STATE_CHECKS, "account")
ALL = ("configuration", "hotkey", "nats", *ON_NATS, "facilitator")


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs `relay doctor` with enough time for each check on a busy machine."""
    patient = functools.partial(checks.run_checks, timeout_s=20, connect_timeout_s=20)
    monkeypatch.setattr(doctor, "run_checks", patient)
    return make_command(monkeypatch, tmp_path)


@pytest.fixture
def examine(command):
    """Runs `relay doctor --json`; returns its exit code and its findings as (check, verdict, found)."""

    async def examine(**settings: str) -> tuple[int, list[tuple[str, str, str]]]:
        ended = await command("doctor", "--json", **settings)
        findings = json.loads(ended.out)["findings"]
        return ended.code, [(each["check"], each["verdict"], each["found"]) for each in findings]

    return examine


@pytest.fixture
def hotkey(tmp_path) -> str:
    return hotkey_file(tmp_path, HOTKEY)


@pytest.fixture
async def simulator() -> AsyncIterator[FacilitatorSimulator]:
    async with FacilitatorSimulator([HOTKEY.public_key.hex()]) as simulator:
        yield simulator


def not_ok(findings: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(check, verdict) for check, verdict, _ in findings if verdict != "ok"]


def told(findings: list[tuple[str, str, str]], check: str) -> str:
    return "; ".join(found for name, _, found in findings if name == check)


async def test_what_is_set_is_used(examine, nats_server, hotkey):
    """Credentials that the server does not ask for, and a hotkey that is not used, are warnings."""
    unasked = {"NATS_TOKEN": "token", "FACILITATOR_AUTH": "none", "FACILITATOR_HOTKEY_FILE": hotkey}
    _, findings = await examine(NATS_URL=nats_server.url, **unasked)
    assert {("hotkey", "warn"), ("nats", "warn")} <= set(not_ok(findings))
    assert "lets everybody in, without the credentials that are set" in told(findings, "nats")
    assert "not used, because RELAY_FACILITATOR_AUTH is none" in told(findings, "hotkey")


async def test_all_well(examine, nats_server):
    """With a running relay every check is made, and the only complaint is that there is one replica."""
    async with FacilitatorSimulator() as simulator, Scene(nats_server, simulator) as scene, scene.relay():
        await scene.settled(*await scene.publish_life(new_job()))
        settings = {"FACILITATOR_URL": simulator.url, "FACILITATOR_AUTH": "none"}
        code, findings = await examine(NATS_URL=nats_server.url, **settings)
    assert (0, [("copies", "warn")]) == (code, not_ok(findings))
    assert list(ALL) == [check for check, _, _ in findings]


async def test_text(command, nats_server, simulator, hotkey):
    """The text has a line for each finding, what to do below it, and the count at the end; exit code 1 on a failure."""
    given = {"FACILITATOR_URL": simulator.url, "FACILITATOR_HOTKEY_FILE": hotkey}
    ended = await command("doctor", NATS_URL=nats_server.url, **given)
    lines = ended.out.splitlines()
    assert (1, "") == (ended.code, ended.err)
    assert "ok    configuration readable, and all that `relay serve` needs" == lines[0]
    assert "fail  topology      stream JOB_STATUS is missing; stream JOB_DLQ is missing; stream" in ended.out
    assert "\n                    -> run `relay provision` with the settings of the relays\n" in ended.out
    assert "6 ok, 9 warn, 1 fail" == lines[-1]
    assert [] == [line for line in lines if len(line) > 116]


async def test_nats_away(examine, simulator, hotkey):
    """Without NATS the checks that need it are reported as not made; the Facilitator is still checked."""
    given = {"FACILITATOR_URL": simulator.url, "FACILITATOR_HOTKEY_FILE": hotkey}
    code, findings = await examine(NATS_URL=NOWHERE, **given)
    assert 1 == code
    assert [("nats", "fail"), *((name, "warn") for name in ON_NATS)] == not_ok(findings)
    assert {"not checked, because no NATS server is fit for it"} == {told(findings, name) for name in ON_NATS}


@pytest.mark.usefixtures("provisioned")
async def test_one_server_away(examine, nats_server):
    """Each of several servers has its line; one that is away is a warning while another is up."""
    _, findings = await examine(NATS_URL=f"{NOWHERE},{nats_server.url}")
    assert [("nats", "warn"), ("nats", "ok")] == [each[:2] for each in findings if each[0] == "nats"]
    assert ("topology", "ok") in [each[:2] for each in findings]


async def test_without_jetstream(examine):
    """A server without JetStream is recognised."""
    async with NatsServer(jetstream=False) as server:
        code, findings = await examine(NATS_URL=server.url)
    assert 1 == code
    assert "JetStream is not enabled" in told(findings, "nats")


@pytest.mark.usefixtures("provisioned")
async def test_nobody_drives(examine, nats_server):
    """With streams and consumers in place, but no worker, workers and lanes fail, and the topology does not."""
    code, findings = await examine(NATS_URL=nats_server.url)
    assert 1 == code
    failed = [check for check, verdict, _ in findings if verdict == "fail"]
    assert ["workers", "lanes"] == failed
    assert "nobody drives lanes 0, 1, 2, 3" in told(findings, "lanes")


@pytest.mark.usefixtures("provisioned")
async def test_other_settings(examine, nats_server):
    """If settings differ from what is provisioned, the topology check lists each difference."""
    _, findings = await examine(NATS_URL=nats_server.url, ACK_WAIT="10", LANES="4")
    assert "consumer relay-lane-0 differs: ack_wait 5s -> 10s" in told(findings, "topology")


async def test_worker_in_trouble(examine, nats_server, simulator):
    """What keeps a worker from relaying is reported in the worker's words."""
    away = "ws://127.0.0.1:1/ws/v0/"
    async with Scene(nats_server, simulator) as scene, scene.relay(FACILITATOR_URL=away):
        await scene.owned(lambda: len(scene.owners) == 4)
        code, findings = await examine(NATS_URL=nats_server.url)
    assert (1, [("workers", "fail")]) == (code, [each[:2] for each in findings if each[0] == "workers"])
    assert "the Facilitator" in told(findings, "workers")


# The configuration and the Facilitator.


async def test_bad_configuration(examine):
    """With an invalid setting nothing else can be checked; each check says so, and the exit code is 1."""
    code, findings = await examine(LANES="many")
    assert 1 == code
    assert ("configuration", "fail", "RELAY_LANES='many' is not allowed: a whole number from 1 to 256") == findings[0]
    assert [(name, "not checked, because the configuration cannot be read") for name in ALL[1:]] == [
        (check, found) for check, _, found in findings[1:]
    ]


async def test_unusable_hotkey(examine, simulator, tmp_path):
    """A missing hotkey file is reported; the Facilitator is checked without authentication, as far as possible."""
    given = {"FACILITATOR_URL": simulator.url, "FACILITATOR_HOTKEY_FILE": str(tmp_path / "none")}
    code, findings = await examine(NATS_URL=NOWHERE, **given)
    assert (1, "fail") == (code, dict(each[:2] for each in findings)["hotkey"])
    assert "there is no such file" in told(findings, "hotkey")
    assert f"({simulator.url} itself can be reached)" in told(findings, "facilitator")


async def test_facilitator_lets_in(examine, simulator, hotkey):
    """With the configured hotkey the doctor authenticates once, sends nothing else, and closes."""
    _, findings = await examine(NATS_URL=NOWHERE, FACILITATOR_URL=simulator.url, FACILITATOR_HOTKEY_FILE=hotkey)
    assert f"{simulator.url} lets this validator in" == told(findings, "facilitator")
    await simulator.wait_for(lambda each: each.connections == 0, 10)
    assert (1, 1, 0, []) == (simulator.accepted, len(simulator.received), simulator.heartbeats, list(simulator.rows))


async def test_facilitator_refuses(examine, simulator, tmp_path):
    """If the Facilitator does not know the hotkey, its answer is reported."""
    stranger = hotkey_file(tmp_path, STRANGER)
    given = {"FACILITATOR_URL": simulator.url, "FACILITATOR_HOTKEY_FILE": stranger}
    code, findings = await examine(NATS_URL=NOWHERE, **given)
    assert (1, "facilitator", "fail") == (code, *findings[-1][:2])
    assert f"{simulator.url} refuses this validator: auth.validator_not_found" in findings[-1][2]


@pytest.mark.parametrize(
    ("fault", "timeout_s", "expected"),
    [
        (DROP_BEFORE_STORING, 20, "ended the connection at the sign-in: dropped without a close frame"),
        (stall(), 0.2, "does not answer the sign-in within 0.2 s"),
    ],
    ids=["dropped", "silent"],
)
async def test_facilitator_does_not_answer(simulator, hotkey, fault, timeout_s, expected):
    """If the Facilitator drops or never answers the authentication, this is reported within a time limit."""
    settings = FacilitatorSettings(url=simulator.url, hotkey_file=hotkey)
    with simulator.inject(fault, at={Moment.AUTHENTICATION}, times=None):
        finding = await check_facilitator(settings, check_hotkey(settings)[1], answer_timeout_s=timeout_s)
    assert fail("facilitator", f"{simulator.url} {expected}", finding.remedy) == finding


@pytest.mark.parametrize(
    ("where", "timeout_s", "found", "remedy"),
    [
        ("ws://127.0.0.1:1/ws/v0/", 20, "[Errno 111]", "it is down or out of reach"),
        ("{simulator}x/", 20, "HTTP 500", "another server answers there"),
        (
            "ws://127.0.0.1:{silent}/ws/v0/",
            0.2,
            "no answer to the request",
            "it is down or out of reach",
        ),
    ],
    ids=["nobody", "another", "silent"],
)
async def test_facilitator_out_of_reach(simulator, where, timeout_s, found, remedy):
    """No server, another server, and a server that never answers: each has its own finding."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = where.format(simulator=simulator.url, silent=silent.getsockname()[1])
        finding = await check_facilitator(FacilitatorSettings(url=url, auth="none"), None, open_timeout_s=timeout_s)
    assert fail("facilitator", finding.found, finding.remedy) == finding
    assert finding.found.startswith(f"cannot connect to {url}: ")
    assert found in finding.found
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        ("502 Bad Gateway", "a proxy answers, and the Facilitator behind it does not"),
        ("401 Unauthorized", "the proxy before it wants credentials"),
        ("429 Too Many Requests", "it limits connections"),
        ("404 Not Found", "another server answers there"),
    ],
)
async def test_facilitator_answers_otherwise(status, remedy):
    """Each HTTP status of a proxy before the Facilitator has what to do about it."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    async with tcp_server(answer) as port:
        settings = FacilitatorSettings(url=f"ws://127.0.0.1:{port}/ws/v0/", auth="none")
        finding = await check_facilitator(settings, None, open_timeout_s=20)
    assert f"HTTP {status[:3]}" in finding.found
    assert finding.remedy.startswith(remedy)


# The doctor changes nothing, and shows no secrets.


async def test_permissions(examine):
    """Exactly the missing permissions of the NATS user are named."""
    denied = 'publish: {deny: ["job.dlq.*", "$JS.API.CONSUMER.MSG.NEXT.>"]}, subscribe: {deny: "job.query.*"}'
    users = f"accounts {{A {{jetstream: enabled, users: [{{user: u, password: p, permissions: {{{denied}}}}}]}}}}"
    async with NatsServer(extra_config=users) as server:
        code, findings = await examine(NATS_URL=server.url, NATS_USER="u", NATS_PASSWORD="p")
    expected = (
        "this NATS user may not: publish on $JS.API.CONSUMER.MSG.NEXT.JOB_STATUS.relay-lane-0; "
        "publish on job.dlq.relay-doctor; subscribe to job.query.relay-doctor"
    )
    assert (1, expected) == (code, told(findings, "permissions"))


async def test_longer_acks(examine):
    """A user who may acknowledge only in the form that nats-server uses now is told of the other form."""
    users = 'accounts {A {jetstream: enabled, users: [{user: u, password: p, permissions: {publish: {deny: "'
    denied = '$JS.ACK.*.*.JOB_STATUS.>"}}}]}}'
    async with NatsServer(extra_config=users + denied) as server:
        _, findings = await examine(NATS_URL=server.url, NATS_USER="u", NATS_PASSWORD="p")
    found = (
        "this NATS user may not publish on $JS.ACK._.relay-doctor.JOB_STATUS.relay-lane-0.1.4611686018427387904.1.0.0"
    )
    assert ("warn", found) == next(each[1:3] for each in findings if each[0] == "permissions")


async def test_no_such_domain(examine, nats_server):
    """A domain that nobody serves is named, not taken for a server without JetStream."""
    code, findings = await examine(NATS_URL=nats_server.url, NATS_DOMAIN="nowhere")
    assert 1 == code
    assert "nobody answers $JS.nowhere.API.INFO: there is no such JetStream domain" in told(findings, "nats")


async def test_the_relays_own_user(examine, guarded, facilitator):
    """The user `relay` of deploy/nats/users.conf has all permissions it needs; what it may not see is reported."""
    findings, worker = await examine_as("relay", examine, guarded, facilitator)
    assert [("dead letters", "warn"), ("copies", "warn")] == not_ok(findings)
    told_by_worker = "by reason; the workers have written unknown_status 1)"
    assert told(findings, "dead letters").startswith("1 in JOB_DLQ (this NATS user may not count them ")
    assert told(findings, "dead letters").endswith(told_by_worker)
    assert worker in told(findings, "lanes")


@pytest.mark.parametrize("role", ["operator", "observer"])
async def test_others(role, examine, guarded, facilitator):
    """With `operator` or `observer` the rest can be checked; the report says that this is not the relay's user."""
    findings, _ = await examine_as(role, examine, guarded, facilitator)
    assert [("permissions", "warn"), ("dead letters", "warn"), ("copies", "warn")] == not_ok(findings)
    assert told(findings, "permissions").endswith("so it is not the relay's")
    assert "1 alive, version " in told(findings, "workers")


async def examine_as(role, examine, server, facilitator):
    """The findings with a user of deploy/nats/users.conf and a running relay, and that relay's id."""
    quick = {"FACILITATOR_URL": facilitator.url, "FACILITATOR_AUTH": "none"}
    async with Scene(server, facilitator, **variables(ANYBODY)) as scene, scene.relay(**variables("relay")):
        await scene.owned(lambda: len(scene.owners) == 4)
        await scene.settled(await scene.publish(new_job()), await scene.publish(new_job(), "nonsense"))
        _, findings = await examine(NATS_URL=server.url, **quick, **variables(role))
        return findings, scene.takings[0].worker


async def test_looking_changes_nothing(examine, nats_server):
    """The doctor's attempts change no stream or consumer, and take no update from a worker."""
    async with FacilitatorSimulator() as simulator, Scene(nats_server, simulator) as scene:
        await scene.publish(new_job(0))
        before = await state(scene)
        _, findings = await examine(NATS_URL=nats_server.url)
        assert "ok" == dict(each[:2] for each in findings)["permissions"]
        assert before == await state(scene)
        assert [1, 0, 0] == [before[name] for name in (STATUS_STREAM, DLQ_STREAM, LEASE_STREAM)]


async def state(scene: Scene) -> dict[str, int]:
    """The last sequence of each stream, and the delivered sequence of lane 0."""
    streams = (STATUS_STREAM, DLQ_STREAM, LEASE_STREAM)
    found = {name: (await api_request(scene.nc, api_stream_info(name)))["state"]["last_seq"] for name in streams}
    lane = await api_request(scene.nc, api_consumer_info(STATUS_STREAM, lane_consumer(0)))
    return found | {"delivered": lane["delivered"]["consumer_seq"], "consumers": len(found)}


def test_needs_without_effect():
    """Nothing is tried on a subject that has an effect, and no publish could be stored."""
    tried = needs()
    acted_upon = ("job.status.", "job.request.", "job.cheated.", "job.relayed.")
    assert [] == [need for need in tried if need.subject.startswith(acted_upon)]
    stored = [need for need in tried if need.subject.startswith(("job.dlq.", "$KV.")) and not need.subscribe]
    assert 2 == len(stored)
    assert [] == [need for need in stored if "Nats-Expected-Stream" not in (need.headers or {})]


@pytest.mark.usefixtures("provisioned")
async def test_one_check_that_breaks(examine, nats_server, monkeypatch):
    """A check that raises any exception fails alone; the others are made."""

    async def broken(*_: object) -> None:
        raise KeyError("storage")

    monkeypatch.setattr(checks, "check_account", broken)
    code, findings = await examine(NATS_URL=nats_server.url)
    assert (1, "the check broke: KeyError, with its traceback on standard error") == (code, told(findings, "account"))
    assert ("topology", "ok") in [each[:2] for each in findings]


async def test_a_check_that_has_no_connection(examine, nats_server, monkeypatch):
    """If NATS goes away after the servers were checked, the other checks are there, as not made."""

    async def away(*_: object) -> None:
        raise BrokerUnavailable([], "gone")

    monkeypatch.setattr(checks, "open_client", away)
    code, findings = await examine(NATS_URL=nats_server.url)
    assert (1, set(ALL)) == (code, {check for check, _, _ in findings})
    assert {("warn", "not checked, because the connection for it failed")} == {
        (verdict, found) for check, verdict, found in findings if check in ON_NATS
    }


async def test_a_server_that_takes_too_long(monkeypatch):
    """It is named."""

    async def hang(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(checks, "check_server", hang)
    findings = await checks._check_servers(NatsSettings(urls=(NOWHERE,)), 0.01, 0.01)
    assert [f"{NOWHERE}: it took more than 0.01 s"] == [finding.found for finding in findings]


def test_texts_of_others(capsys):
    """Neither what was found nor what to do about it, which a worker may have reported, controls the terminal."""
    doctor._print(fail("intake", "rings \a", "rings \a"))
    assert 2 == capsys.readouterr().out.count("rings \\x07")


async def test_no_secrets(command, nats_server, tmp_path):
    """The output contains no passwords, neither those in addresses nor those in their own settings."""
    url = nats_server.url.replace("nats://", "nats://operator:planted-a@")
    given = {
        "NATS_URL": f"{url},nats://x:planted-b@127.0.0.1:1",
        "FACILITATOR_URL": "ws://u:planted-c@127.0.0.1:1/ws/v0/?token=planted-d",
        "FACILITATOR_HOTKEY_FILE": hotkey_file(tmp_path, HOTKEY),
        "FACILITATOR_HOTKEY_PASSWORD": "planted-e",
    }
    ended = await command("doctor", **given)
    assert "ws://127.0.0.1:1/ws/v0/" in ended.out
    assert "planted" not in ended.out + ended.err
