"""`relay dlq` as an operator uses it: real processes, in a terminal and without one."""

import asyncio
import json
import resource
import signal
from collections.abc import Callable
from typing import Any

import pytest
from cli_kit import TIMEOUT_S, Ended, on_terminal, start_command
from dead_letter_kit import JOB, OTHER, change_stream
from typer.testing import CliRunner

from relay.cli import program
from relay.contract.subjects import DLQ_STREAM, DLQ_SUBJECTS, STATUS_STREAM, Reason, status_subject
from relay.dead_letters import stream
from relay.local.server import NatsServer
from relay.nats.jetstream import publish_confirmed

BAD = json.dumps({"uuid": JOB, "status": "finished", "metadata": {"n": [1, 2]}}).encode()


@pytest.fixture
def run(relay, nats_server) -> Callable[..., Any]:
    """`await run("list --limit 1")`: runs `relay dlq ...` to its end, without a terminal."""

    async def run(line: str, **settings: str) -> Ended:
        return await relay("dlq", *line.split(), **{"NATS_URL": nats_server.url} | settings)

    return run


@pytest.fixture
def terminal(nats_server) -> Callable[..., Any]:
    """The same in a terminal of 160 columns, with typed input; returns the exit code and the screen."""

    async def run(line: str, typed: str = "") -> tuple[int, str]:
        command = on_terminal("dlq", *line.split(), columns=160, lines=50, kind="dumb", NATS_URL=nats_server.url)
        async with command as shown:
            shown.type(typed)
            return await shown.finished(), shown.screen

    return run


async def test_list_off_a_terminal(run, dlq):
    """Without a terminal each dead letter is a line of JSON, and the count by reason goes to standard error."""
    await dlq.write(body=b'{"status": "accepted"}')
    await dlq.write(OTHER, reason=Reason.TOO_LARGE)
    await dlq.write()
    ended = await run("list")
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert (0, "3 dead letters: refused 2, too_large 1\n") == (ended.code, ended.err)
    assert [(2, OTHER, None), (3, JOB, None)] == [(row["sequence"], row["job"], row["status"]) for row in rows[1:]]
    assert {"sequence": 1, "job": JOB, "status": "accepted", "reason": "refused", "error": "told", "attempts": 5} | {
        "source_subject": status_subject(JOB),
        "source_sequence": 1,
        "replayed_from": None,
        "history": [],
        "bytes": 22,
    } == {name: value for name, value in rows[0].items() if not name.endswith("_at")}


async def test_list_on_a_terminal(terminal, dlq):
    """In a terminal there is a table, with the count by reason at its end."""
    await dlq.write(body=b'{"status": "accepted"}')
    await dlq.write(OTHER, reason=Reason.TOO_LARGE)
    _, screen = await terminal("list --limit 1")
    heading, row, count = screen.splitlines()
    assert ["seq", "failed", "at", "(UTC)", "reason", "job", "status", "error"] == heading.split()
    assert ["1", "refused", JOB, "accepted", "told"] == [row.split()[at] for at in (0, 3, 4, 5, 6)]
    assert [heading.index(name) for name in ("reason", "job", "status", "error")] == [
        row.index(cell) for cell in ("refused", JOB, "accepted", "told")
    ]
    assert "1 dead letter: refused 1; there may be more, because of --limit" == count


async def test_show(run, dlq):
    """For one dead letter, `show` prints the reason, what to do, its origin, headers and body."""
    source = await dlq.write(body=BAD, reason=Reason.UNKNOWN_STATUS, X_Trace="7b")
    ended = await run("show 1")
    assert (0, "") == (ended.code, ended.err)
    for told in (
        "reason      unknown_status: the status is `unknown`, or one that the Facilitator would store as `unknown`",
        "error       told",
        "what to do  fix the producer",
        "more        docs/dead-letters.md#unknown_status",
        f"job         {JOB}",
        "status      finished",
        "attempts    5",
        "failed at   20",
        f"source      {status_subject(JOB)}, JOB_STATUS sequence {source}",
        "header      X-Trace: 7b",
        f"body        {len(BAD)} bytes\n",
        "now         as it is, a replay would fail again, with unknown_status: status is 'finished'",
        '  "status": "finished",\n  "metadata": {\n    "n": [\n      1,\n      2\n    ]\n  }\n}\n',
    ):
        assert told in ended.out


async def test_show_history(run, dlq):
    """A dead letter that was replayed shows its earlier failures."""
    history = "job_not_found 5 2026-11-22T01:00:00.000+00:00; refused 1 2026-11-22T02:00:00.000+00:00"
    await dlq.write(**{"Relay-Replayed-From": "17", "Relay-History": history})
    out = (await run("show 1")).out
    assert "replay of   dead letter 17\n" in out
    assert "before      job_not_found after 5 attempts, 2026-11-22T01:00:00.000+00:00\n" in out
    assert "before      refused after 1 attempt, 2026-11-22T02:00:00.000+00:00\n" in out


async def test_show_truncates(run, dlq):
    """A long body is cut; the output says how much is missing, and how to see it."""
    body = b'["' + b"x" * 5000 + b'"]'
    await dlq.write(body=body)
    short, full = await run("show 1"), await run("show 1 --full")
    assert 5000 == full.out.count("x" * 10) * 10
    assert short.out.endswith("x\n... and 3008 characters more: --full shows them\n")


async def test_control_characters(run, terminal, dlq):
    """No control character of a body, header or subject reaches the terminal; the rest of the body is shown."""
    evil = "\x1b]0;pwned\x07\x9b31m\u202e"
    headers = {"Relay-Reason": evil, "Relay-Error": evil, "Relay-Source-Subject": f"job.status.{evil}", "X": evil}
    body = b'\x1b[2J not JSON \xff \x9b"'
    await publish_confirmed(dlq.client, DLQ_SUBJECTS.replace("*", "evil"), body, headers)
    _, table = await terminal("list")
    _, screen = await terminal("show 1")
    rehearsal = (await run("replay 1 --dry-run")).out
    for shown in (table, rehearsal, screen):
        assert "" == "".join(char for char in shown if not char.isprintable() and char != "\n")
    assert "it cannot be parsed: " in screen
    assert '\\x1b[2J not JSON \\xff \\x9b"' in screen


async def test_nothing_there(run, dlq):
    """A sequence without a dead letter is reported, with exit code 1; the others are replayed."""
    await dlq.write()
    ended = await run("show 9")
    assert (1, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert ended.err.startswith("relay: there is no dead letter 9 in JOB_DLQ: ")
    ended = await run("replay 1 9")
    assert (1, "replayed 1\n") == (ended.code, ended.out)
    assert "there is no dead letter 9 in JOB_DLQ" in ended.err


async def test_dry_run(run, dlq):
    """A dry run changes nothing, and shows what would be replayed and what would fail again."""
    await dlq.write(body=BAD)
    good = json.dumps({"uuid": OTHER, "status": "accepted"}).encode()
    await dlq.write(OTHER, body=good)
    before = await dlq.updates()
    ended = await run("replay --all --dry-run")
    assert 0 == ended.code
    first, why, second, count = ended.out.splitlines()
    assert f"would replay 1 (refused) on {status_subject(JOB)}" == first
    assert why.startswith("  it would fail again, with unknown_status: ")
    assert f"would replay 2 (refused) on {status_subject(OTHER)}" == second
    assert "2 would be replayed, of which 1 would fail again as they are" == count
    assert (before, [1, 2]) == (await dlq.updates(), await dlq.sequences())


async def test_stopped_replay(run, terminal, dlq):
    """A replay that the server stops says how many were replayed, how many are left and how to go on, which works."""
    await dlq.write_many(5)
    await dlq.client.jetstream().purge_stream(STATUS_STREAM)  # otherwise each deleted source would make room
    await change_stream(dlq.client, STATUS_STREAM, max_msgs=2)
    ended = await run("replay --all")
    assert (1, "replayed 2\nleft 3\n", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert ended.err.startswith("relay: stopped: publish on job.status.")
    assert ended.err.endswith("run the same command again: nothing is lost, and nothing is sent twice\n")
    assert [3, 4, 5] == await dlq.sequences()
    await change_stream(dlq.client, STATUS_STREAM, max_msgs=-1)
    code, screen = await terminal("replay --all")
    assert (0, "replayed 3") == (code, screen.splitlines()[-1])
    assert [b"%d" % count for count in range(5)] == [body for _, body, _ in await dlq.updates(6)]


async def test_interrupted_replay(dlq, nats_server, tmp_path):
    """After Ctrl-C a replay says how many were replayed and how many are left, as the stream shows."""
    await dlq.write_many(30)
    third = await dlq.updates_published(3)
    process = await start_command(tmp_path, "dlq", "replay", "--all", "--rate", "20", NATS_URL=nats_server.url)
    async with asyncio.timeout(TIMEOUT_S):
        await third.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    replayed, left = (int(line.split()[1]) for line in out.decode().splitlines())
    assert (130, 30) == (process.returncode, replayed + left)
    assert 1 <= replayed < 30
    assert b"relay: interrupted; to go on, run the same command again: " in err
    remaining = await dlq.sequences()
    assert left - 1 <= len(remaining) <= left, "a removal may be under way, its answer not"


async def test_purge_asks(run, terminal, dlq):
    """Nothing is removed without a yes in the terminal, or `--yes` without a terminal."""
    await dlq.write_many(2)
    refused = await run("purge --all")
    assert (2, "") == (refused.code, refused.out)
    assert "--yes" in refused.err
    code, screen = await terminal("purge --all", typed="n\n")
    assert 1 == code
    assert "2 dead letters: refused 2\nRemove them for good? [y/N]: " in screen
    assert [1, 2] == await dlq.sequences()
    code, screen = await terminal("purge 1", typed="y\n")
    assert (0, "removed 1") == (code, screen.splitlines()[-1].rpartition(": ")[2])
    assert Ended(0, "removed 1\n", "") == await run("purge --all --yes")
    assert Ended(0, "nothing to remove\n", "") == await run("purge --all --yes")


async def test_export_edit_replay(run, dlq, tmp_path):
    """Exported dead letters can be edited and replayed: each is published on its own subject, once."""
    await dlq.write(body=BAD, X_Trace="7b")
    await dlq.write(body=b"\xff")
    ended = await run("purge --all --yes --export letters")
    assert Ended(0, "exported 2 to letters\nremoved 2\n", "") == ended
    path = tmp_path / "letters"
    path.write_text(path.read_text().replace("finished", "completed"))
    assert Ended(0, "replayed 2\n", "") == await run("replay --from letters")
    again = await run("replay --from letters")
    assert (0, "replayed 0") == (again.code, again.out.splitlines()[0])
    assert "2 had been replayed before" in again.out
    (_, edited, headers), (_, raw, _) = await dlq.updates(3)
    assert (BAD.replace(b"finished", b"completed"), b"\xff") == (edited, raw)
    assert ("7b", "1") == (headers["X-Trace"], headers["Relay-Replayed-From"])
    path.write_text(path.read_text().replace("completed", "failed"))
    again = await run("replay --from letters")
    assert (0, "replayed 1") == (again.code, again.out.splitlines()[0]), "edited once more it is another update"


async def test_bad_files(run, dlq, tmp_path):
    """A file with one bad line is refused with the line's number; an export overwrites no file. Both exit with 2."""
    await dlq.write()
    await run("purge --all --yes --export letters")
    await dlq.write()
    with (tmp_path / "letters").open("a") as file:
        file.write("{}\n")
    ended = await run("replay --from letters")
    assert 2 == ended.code
    assert "line 2: " in ended.err
    assert 1 == len(await dlq.updates()), "nothing was replayed"
    assert 2 == (await run("replay --from nowhere")).code
    ended = await run("purge --all --yes --export letters")
    assert (2, "") == (ended.code, ended.out)
    assert [2] == await dlq.sequences()


async def test_no_room_for_the_export(run, dlq, tmp_path):
    """If the file cannot be written to its end, nothing is removed, and no incomplete file is left."""
    await dlq.write(body=b"x" * 1_000_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        ended = await run("purge --all --yes --export letters")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (2, "") == (ended.code, ended.out)
    assert "letters cannot be written (File too large)" in ended.err
    assert (False, [1]) == ((tmp_path / "letters").exists(), await dlq.sequences())


@pytest.mark.parametrize("command", ["list", "show 1", "replay 1", "replay --all", "purge --all --yes"])
async def test_without_a_dead_letter_stream(run, dlq, command):
    """Without the stream each command prints one line that says what to run, with exit code 1."""
    await dlq.client.jetstream().delete_stream(DLQ_STREAM)
    expected = "relay: not provisioned (stream JOB_DLQ is missing): run `relay provision`\n"
    ended = await run(command)
    assert (1, expected) == (ended.code, ended.err.replace("stopped: ", "").replace("; when", "\n; when").split(";")[0])


async def test_nats_away(run):
    """Without NATS one line names the address that was tried, with exit code 1."""
    ended = await run("list", NATS_URL="nats://127.0.0.1:1")
    assert (1, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert ended.err.startswith("relay: no NATS connection to nats://127.0.0.1:1: ")


async def test_not_permitted(run, monkeypatch):
    """If the account lacks a permission, the error names it and what to do."""
    monkeypatch.setattr(stream, "_ANSWER_TIMEOUT_S", 0.3)
    user = '{user: u, password: p, permissions: {publish: "$JS.API.INFO"}}'
    users = f"accounts {{A {{jetstream: enabled, users: [{user}]}}}}"
    async with NatsServer(extra_config=users) as server:
        ended = await run("list", NATS_URL=server.url, NATS_USER="u", NATS_PASSWORD="p")
    assert (1, "") == (ended.code, ended.out)
    last = ended.err.splitlines()[-1]
    assert last.startswith("relay: the NATS account does not permit this: permissions violation for publish")
    assert last.endswith("use credentials that may do it, or have it permitted")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("replay", "say which"),
        ("purge --yes", "say which"),
        ("replay 1 --all", "say which"),
        ("replay 1 --job x", "not both"),
        ("replay 0", "from 1"),
        ("replay --from x --all", "no other selection"),
        ("list --since yesterday", "--since 'yesterday' is not allowed"),
        ("list --reason nonsense", "invalid_json"),
        ("list --limit 0", "--limit"),
        ("show none", "SEQ"),
    ],
)
def test_usage(arguments, problem):
    """Invalid arguments end with exit code 2 before a server is asked."""
    ended = CliRunner().invoke(program(), ["dlq", *arguments.split()], env={"COLUMNS": "200"})
    assert (2, "") == (ended.exit_code, ended.stdout)
    assert problem in ended.stderr
