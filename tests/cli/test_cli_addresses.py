"""Every command with addresses, hosts, ports, paths, certificates and credentials of any kind: one line, never a
traceback, and soon.
"""

import asyncio
import os
import random
import socket

import pytest
from cli_kit import make_command

from relay.cli import serve

COMMANDS = (
    ("serve",),
    ("serve", "--provision"),
    ("provision",),
    ("provision", "--check"),
    ("publish", "9b2f8c1e-5d3a-4e7b-8f60-1c2d3e4f5a6b", "accepted"),
    ("publish", "-"),
    ("query", "9b2f8c1e-5d3a-4e7b-8f60-1c2d3e4f5a6b"),
    ("top", "--once"),
    ("doctor",),
    ("dlq", "list"),
)
HOSTS = (
    *("127.0.0.1", "localhost", "[::1]", "no.such.example", "xn--bcher-kva.example", "bücher.example", "1.2.3", "0"),
    *("", ".", "facilitator..example", ".example", "a" * 64 + ".example", "a." * 200 + "example", "a b", "a\tb"),
    *(
        "[",
        "[::1",
        "]",
        "[fe80::1%25lo]",
        "\x00",
        "\x7f",
        "%00",
        "\udcff",
        "☃" * 30,
        "-",
        "_",
        "*",
        "..",
        "256.256.1.1",
    ),
)
PORTS = ("", ":1", ":0", ":65535", ":65536", ":-1", ":x", ":", ":99999999999999999999", ":٣")
PATHS = (
    "/ws/v0/",
    "/ws/v0",
    "/",
    "",
    "/a b/",
    "/\udcff/",
    "/%zz/?x=1",
    "/ws/v0/#part",
    "//",
    "/☃/",
    "/" + "x" * 5000 + "/",
)
USERS = ("", "", "", "user@", "user:pass@", "user:@", ":@", "@", "%zz:%ff@", "us%40er:pa%2Fss@", "u:p:q@", "☃:☃@")
FILES = {
    "empty": b"",
    "text": b"not a certificate\n",
    "bytes": bytes(range(256)),
    "begin": b"-----BEGIN CERTIFICATE-----\n",
    "garbled": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "seed": b"SUA" + b"A" * 55,
    "creds": b"-----BEGIN NATS USER JWT-----\ney.ey.x\n------END NATS USER JWT------\n"
    b"-----BEGIN USER NKEY SEED-----\nSUA" + b"A" * 55 + b"\n------END USER NKEY SEED------\n",
    "long": b"x" * 100_000,
}
OF_FILES = (
    "NATS_CREDS",
    "NATS_NKEY_FILE",
    "NATS_CA_FILE",
    "NATS_CERT_FILE",
    "NATS_KEY_FILE",
    "FACILITATOR_HOTKEY_FILE",
)
TEXTS = ("", "x", "☃", "\udcff", "a\nb", " ", "x" * 10_000, "{}", "%s")
OF_TEXTS = ("NATS_USER", "NATS_PASSWORD", "NATS_TOKEN", "FACILITATOR_HOTKEY_PASSWORD", "NATS_INBOX_PREFIX")
ROUNDS = int(os.environ.get("COUNT", "6"))


def any_settings(random_, folder):
    def address(schemes):
        scheme, host, port = (
            random_.choice(schemes),
            random_.choice(HOSTS[:8] * 12 + HOSTS),
            random_.choice(PORTS[:2] * 20 + PORTS),
        )
        return f"{scheme}://{random_.choice(USERS)}{host}{port}"

    settings = {
        "NATS_URL": ",".join(address(("nats", "nats", "tls", "ws")) for _ in range(random_.choice((1, 1, 2)))),
        "FACILITATOR_URL": address(("ws", "wss")) + random_.choice(PATHS[:1] * 40 + PATHS),
        "FACILITATOR_AUTH": random_.choice(("none", "none", "hotkey")),
        "HTTP_PORT": "0",
        "HTTP_HOST": random_.choice(("127.0.0.1",) * 5 + HOSTS),
    }
    for name in random_.sample(OF_FILES, random_.choice((0, 0, 1, 2, 3))):
        settings[name] = str(folder / random_.choice([*FILES, "nowhere"]))
    for name in random_.sample(OF_TEXTS, random_.choice((0, 0, 1, 2))):
        settings[name] = random_.choice(TEXTS)
    # An environment cannot hold the byte 0.
    return {name: value.replace("\x00", "") for name, value in settings.items()}


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run a command; `serve` is told to stop as soon as it has tried to connect. Names are looked up in no network."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)

    def stop_soon(stop):
        asyncio.get_running_loop().call_later(0.05, stop.set)

    def look_up(host, port, *arguments, **options):
        try:
            options["flags"] = options.get("flags", 0) | socket.AI_NUMERICHOST
            return really_look_up("127.0.0.1" if host == "localhost" else host, port, *arguments, **options)
        except socket.gaierror:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None

    really_look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(serve, "_stop_on_signals", stop_soon)
    # uvloop looks names up without Python's `socket`.
    monkeypatch.setattr("relay.cli.common.new_event_loop", asyncio.new_event_loop)
    return make_command(monkeypatch, tmp_path)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
async def test_no_traceback(command, tmp_path, arguments):
    """Whatever the settings, a command ends with 0, 1 or 2, and says why on one line."""
    random_ = random.Random(" ".join(arguments))
    for _ in range(ROUNDS):
        settings = any_settings(random_, tmp_path)
        async with asyncio.timeout(20):
            ended = await command(*arguments, **settings)
        assert ended.code in {0, 1, 2}, (settings, ended)
        assert "Traceback" not in ended.out + ended.err, settings
        if ended.code == 2:
            assert [ended.err] == ended.err.splitlines(keepends=True), settings
            assert "RELAY_" in ended.err, settings
