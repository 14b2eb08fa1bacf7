"""The commands in surroundings that nobody chose: closed and full streams, other encodings, variables of libraries."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_kit import TIMEOUT_S, Ended, environment
from dead_letter_kit import JOB, change_stream
from process_kit import started

from relay.contract.subjects import STATUS_STREAM
from relay.service.surroundings import forget_variables

NOISE = ("Traceback", "Exception ignored", "Error in sys", "Aborted", "never awaited")
FOR_LIBRARIES = {
    "PROMETHEUS_MULTIPROC_DIR": "/nonexistent",
    "prometheus_multiproc_dir": "/nonexistent",
    "WEBSOCKETS_MAX_LINE_LENGTH": "x",
    "WEBSOCKETS_MAX_LOG_SIZE": "x",
    "TERMINAL_WIDTH": "x",
    "TYPER_USE_RICH": "x",
    "_RELAY_COMPLETE": "x",
    "SSLKEYLOGFILE": "/nonexistent/keys",
    "SSL_CERT_FILE": "/nonexistent",
    "COLUMNS": "1000000000",
    "LINES": "-1",
    "PYDANTIC_ERRORS_INCLUDE_URL": "x",
    "NICEGUI_REDIS_URL": "redis://nowhere.invalid",
    "MARKDOWN_CONTENT_CACHE_SIZE": "x",
    "RST_CONTENT_CACHE_SIZE": "x",
    "WEB_CONCURRENCY": "auto",
    "PYTHONWARNINGS": "error",
    "PYTHONASYNCIODEBUG": "1",
    "TMPDIR": "/nonexistent",
    "TZ": "Nowhere/Bad",
    "LC_ALL": "xx_YY",
}
ODD = "\udcff"
"""How Python writes a byte in an argument that is not UTF-8."""
MANY = """
import sys
from relay.__main__ import main
for arguments in eval(sys.argv[1]):
    sys.argv = ["relay", *arguments]
    try:
        main()
    except SystemExit as ended:
        print("ended with", ended.code or 0, flush=True)
"""
"""Runs many commands in one process, because each process takes half a second to start."""


async def shell(
    line: str, folder: Path, *, stdin: bytes = b"", more: dict[str, str] | None = None, **settings
) -> Ended:
    """Run a line of bash in which `relay` is the command."""
    command = f'relay() {{ "{sys.executable}" -m relay "$@"; }}; set -o pipefail; {line}'
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        cwd=folder,
        env=environment(**settings) | (more or {}),
        **dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE),
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate(stdin)
    ended = Ended(process.returncode or 0, out.decode(), err.decode())
    assert [] == [noise for noise in NOISE if noise in ended.out + ended.err], ended
    return ended


def lines(count: int, status: str = "accepted") -> bytes:
    jobs = (f"00000000-0000-4000-8000-{number:012x}" for number in range(count))
    return b"".join(json.dumps({"uuid": job, "status": status}).encode() + b"\n" for job in jobs)


async def stored(dlq: Any) -> int:
    return (await dlq.client.jetstream().stream_info(STATUS_STREAM)).state.messages


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_closed_streams(nats_server, dlq, tmp_path, closed):
    """With standard streams closed, a command does its work, and no socket takes their numbers."""
    await dlq.write()
    line = f"relay dlq purge 1 --yes {closed}; echo $? >&3; relay publish - {closed}; echo $? >&3"
    ended = await shell(f"{{ {line}; }} 3>statuses", tmp_path, stdin=lines(2), NATS_URL=nats_server.url)
    readable = "<&-" not in closed
    assert ["0", "0" if readable else "2"] == (tmp_path / "statuses").read_text().split()
    assert ([], 2 * readable) == (await dlq.sequences(), await stored(dlq))
    assert ("standard input cannot be read: Bad file descriptor" in ended.err) == (closed == "<&-")


async def test_nobody_reads(nats_server, dlq, tmp_path):
    """When `head` has enough, a command that only prints ends quietly, and one that publishes goes on to its end."""
    for _ in range(3):
        await dlq.write()
    url = nats_server.url
    ended = await shell("relay publish - | head -1", tmp_path, stdin=lines(3000), NATS_URL=url)
    assert (0, 1, "") == (ended.code, len(ended.out.splitlines()), ended.err)
    assert 3003 == await stored(dlq)
    for line in (
        "relay top --interval 0.2 | head -3",
        "relay dlq list | true",
        "relay dlq replay --all --dry-run | true",
    ):
        assert (141, "") == (await shell(line, tmp_path, NATS_URL=url))[::2], line
    assert "JOB_STATUS is full" not in (await shell("relay doctor 2>&1 >/dev/null | true", tmp_path, NATS_URL=url)).err


async def test_problems_are_told_although_nobody_reads(nats_server, dlq, tmp_path):
    """What cannot be published is named on standard error, also if nobody reads standard output."""
    await change_stream(dlq.client, STATUS_STREAM, max_msgs=1)
    ended = await shell("relay publish - | true", tmp_path, stdin=lines(3), NATS_URL=nats_server.url)
    assert ["relay: line 2:", "relay: line 3:"] == [line[:14] for line in ended.err.splitlines()]
    assert 1 == ended.code


async def test_no_room_for_the_output(nats_server, dlq, tmp_path):
    """If standard output cannot be written, one line says so; the work is done. Standard error may fail in silence."""
    told = "relay: standard output cannot be written: No space left on device\n"
    for line in ("relay publish - >/dev/full", "relay doctor >/dev/full", "relay --help >/dev/full"):
        ended = await shell(line, tmp_path, stdin=lines(300), NATS_URL=nats_server.url)
        assert Ended(1, "", told) == ended, line
    assert 300 == await stored(dlq)
    ended = await shell(
        "relay publish - 2>/dev/full", tmp_path, stdin=b"no JSON\n" + lines(1, "failed"), NATS_URL=nats_server.url
    )
    assert (1, 301, "") == (ended.code, await stored(dlq), ended.err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp1252:strict", "utf-8"])
async def test_encodings(nats_server, dlq, tmp_path, encoding):
    """What the output's encoding cannot express is escaped, and arguments that are not UTF-8 are no tracebacks."""
    body = json.dumps({"uuid": JOB, "status": "żółć😀", "metadata": {"x": "中文é\ud800"}}, ensure_ascii=False)
    await dlq.write(body=body.encode(errors="surrogatepass"))
    await dlq.write(body=body.replace("\ud800", "").encode())
    cases = {
        ("dlq", "show", "1"): 0,
        ("dlq", "show", "2", "--full"): 0,
        ("dlq", "list"): 0,
        ("dlq", "list", "--job", ODD): 2,
        ("dlq", "replay", "2", "--dry-run"): 0,
        ("dlq", "replay", "--from", ODD): 2,
        ("dlq", "purge", "9", "--yes", "--export", f"kept-{ODD}"): 1,
        ("query", ODD): 2,
        ("publish", JOB, ODD): 2,
        ("publish", JOB, "failed", "--metadata", f'{{"a": "{ODD}"}}'): 2,
        ("publish", JOB, "failed", "--metadata", '{"a": NaN}'): 2,
        ("publish", "--raw", ODD): 2,
        ("top", "--interval", "nan"): 2,
        ("provision", "--check", ODD): 2,
        (ODD,): 2,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MANY, ascii(list(cases))),
        cwd=tmp_path,
        env=environment(NATS_URL=nats_server.url) | {"PYTHONIOENCODING": encoding},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate()
    text = out.decode(encoding.partition(":")[0])
    statuses = [int(line.split()[-1]) for line in text.splitlines() if line.startswith("ended with")]
    assert list(cases.values()) == statuses, err.decode()
    assert ("żółć😀" if encoding == "utf-8" else "\\u017c") in text


async def test_variables_for_libraries(nats_server, scene, tmp_path):
    """Variables that steer libraries in a shared image change nothing, in `relay serve` as in other commands."""
    settings = scene.environment | FOR_LIBRARIES | {"RELAY_HTTP_PORT": "0"}
    async with started("-m", "relay", "serve", settings=settings, folder=tmp_path) as relay:
        await relay.says("connected to the Facilitator")
        assert [] == [line for line in relay.lines for noise in NOISE if noise in line]
        relay.process.terminate()
        assert 0 == await relay.ended()
    line = "relay provision --check && relay --help >/dev/null && relay dlq list"
    quiet = {name: value for name, value in FOR_LIBRARIES.items() if name not in {"LC_ALL", "PYTHONASYNCIODEBUG"}}
    ended = await shell(line, tmp_path, more=quiet, NATS_URL=nats_server.url)
    assert Ended(0, "everything is in place\n", "0 dead letters\n") == ended


def test_terminal_sizes():
    """Sizes that a terminal can have are kept, and so are variables that people set on purpose."""
    others = {"PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "TMPDIR", "TZ", "LC_ALL"}
    kept = {"COLUMNS": "80", "LINES": "1", "NO_COLOR": "1", "SSL_CERT_FILE": "x", "OTEL_SERVICE_NAME": "x"}
    environ = dict.fromkeys(FOR_LIBRARIES, "0") | kept
    forget_variables(environ)
    assert kept == {name: value for name, value in environ.items() if name not in others}
    assert others == environ.keys() - kept.keys()


@pytest.mark.usefixtures("provisioned")
async def test_folder_is_gone(nats_server, tmp_path):
    """Commands work in a folder that was deleted, without a home and with any umask."""
    line = "mkdir gone && cd gone && rmdir ../gone && umask 777 && relay dlq list"
    assert Ended(0, "", "0 dead letters\n") == await shell(line, tmp_path, NATS_URL=nats_server.url)


@pytest.mark.parametrize(
    ("limit", "options", "says"),
    [(11, "", "relay: {}"), (20, "--workers 2", '"event": "a worker cannot be started: {}')],
)
async def test_no_more_files(nats_server, tmp_path, limit, options, says):
    """A process that may open too few files says so in one line; so does a parent that can start no worker."""
    ended = await shell(
        f"ulimit -n {limit} && relay serve {options}",
        tmp_path,
        NATS_URL=nats_server.url,
        FACILITATOR_URL="ws://127.0.0.1:1/ws/v0/",
        FACILITATOR_AUTH="none",
        HTTP_PORT="0",
    )
    said = [line for line in ended.err.splitlines() if "probes and metrics" not in line]
    assert (1, 1) == (ended.code, len(said))
    assert says.format("the system opens no more files for this process (Too many open files)") in said[0]


async def test_byte_order_mark(relay, nats_server, dlq, tmp_path):
    """A byte order mark at the beginning of standard input, or of a file of dead letters, does not count."""
    ended = await relay("publish", "-", stdin=b"\xef\xbb\xbf" + lines(1), NATS_URL=nats_server.url)
    assert (0, "") == (ended.code, ended.err)
    await dlq.write(body=lines(1).strip())
    await relay("dlq", "purge", "1", "--yes", "--export", "letters", NATS_URL=nats_server.url)
    path = tmp_path / "letters"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    replayed = await relay("dlq", "replay", "--from", "letters", NATS_URL=nats_server.url)
    assert Ended(0, "replayed 1\n", "") == replayed


async def test_modules_in_the_working_folder(scene, tmp_path):
    """Files in the working folder that are named like modules are not run by workers."""
    for name in ("nats.py", "json.py", "relay.py"):
        (tmp_path / name).write_text("raise SystemExit(7)")
    settings = scene.environment | {"RELAY_HTTP_PORT": "0"}
    command = ("-P", "-m", "relay", "serve", "--workers", "2")  # the parent as the command `relay` starts it
    async with started(*command, settings=settings, folder=tmp_path) as relay:
        await relay.says("connected to the Facilitator", times=2)
        relay.process.terminate()
        assert 0 == await relay.ended()
    assert [] == relay.said("exit status")


def printed_by(code: str) -> str:
    command = [sys.executable, "-c", f"import sys; from relay.service.surroundings import prepare; prepare(); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout


def test_aiohttp_is_loaded_when_it_is_used():
    code = (
        "import nats.aio.transport as user; before = 'aiohttp.client' in sys.modules; user.aiohttp.ClientSession;"
        "print(before, 'aiohttp.client' in sys.modules)"
    )
    assert printed_by(code) == "False True\n"


def test_serve_loads_nothing_for_other_commands():
    code = "import relay.cli.serve; print({'rich', 'aiohttp.client', 'opentelemetry', 'bittensor'} & {*sys.modules})"
    assert printed_by(code) == "set()\n"
