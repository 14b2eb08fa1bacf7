"""A recognisable secret is set in every place for secrets, and searched for in all output of the relay."""

import json
import re
import traceback

import nkeys
import pytest
from bittensor_wallet import Keypair
from bittensor_wallet import keyfile as wallet_keyfile
from process_kit import ask, started

from relay.contract.environment import load_settings
from relay.contract.errors import BrokerUnavailable, ConfigurationError, IdentityError
from relay.contract.settings import HttpSettings, NatsSettings
from relay.contract.settings_table import settings_table
from relay.facilitator.identity import load_signer
from relay.local.cluster import NatsCluster
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import connect

MNEMONIC = "bottom drive obey lake curtain smoke basket hold race lonely fit walk"
HOTKEY = Keypair.create_from_mnemonic(MNEMONIC)
STRANGER = Keypair.create_from_uri("//Stranger")
KEY_FILE = wallet_keyfile.serialized_keypair_to_keyfile_data(HOTKEY)
SEED = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER).decode()
SECRETS = {
    "RELAY_NATS_PASSWORD": "planted-nats-password",
    "RELAY_NATS_TOKEN": "planted-nats-token",
    "RELAY_FACILITATOR_HOTKEY_PASSWORD": "planted-hotkey-password",
    "RELAY_CONSOLE_PASSWORD": "planted-console-password",
    "password in RELAY_NATS_URL": "planted@url-password",
    "end of the password in RELAY_NATS_URL": "url-password",
    "password in RELAY_FACILITATOR_URL": "planted-proxy-password",
    "token in RELAY_FACILITATOR_URL": "planted-query-token",
    "header in RELAY_FACILITATOR_HEADERS": "planted-header-value",
    "seed in RELAY_NATS_CREDS": SEED,
    "token in RELAY_NATS_CREDS": "planted.user.jwt",
    "mnemonic of the hotkey": MNEMONIC,
    "seed of the hotkey": json.loads(KEY_FILE)["secretSeed"].removeprefix("0x"),
    "private key of the hotkey": json.loads(KEY_FILE)["privateKey"].removeprefix("0x"),
}
CREDENTIALS = f"""\
-----BEGIN NATS USER JWT-----
{SECRETS["token in RELAY_NATS_CREDS"]}
------END NATS USER JWT------
-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------
"""
NKEY_USER = nkeys.from_seed(nkeys.encode_seed(bytes(range(1, 33)), nkeys.PREFIX_BYTE_USER)).public_key.decode()
"""The key of another user: a server with any key in its configuration asks every client to sign."""
SIGN_IN = {
    "password": ("RELAY_NATS_USER", "RELAY_NATS_PASSWORD"),
    "address": ("RELAY_NATS_URL",),
    "credentials": ("RELAY_NATS_CREDS", "RELAY_NATS_TOKEN"),
}
"""The variables of each way to sign in at NATS; the settings take one way at a time."""
BREAK = (
    "import relay.service.app, relay.cli\n"
    "async def broken(self, stop): raise RuntimeError('broken on purpose')\n"
    "relay.service.app.Relay.run = broken\n"
    "relay.cli.main()"
)


def shown(text):
    """The names of the secrets that `text` contains."""
    return {name for name, secret in SECRETS.items() if secret in text}


def told(error):
    """All texts of an error that may be printed."""
    return "\n".join([str(error), repr(error), *traceback.format_exception(error)])


@pytest.fixture
def planted(tmp_path):
    """An environment with every secret in it: the hotkey's file is encrypted, the credentials file is not."""
    hotkey, credentials = tmp_path / "hotkey", tmp_path / "user.creds"
    password = SECRETS["RELAY_FACILITATOR_HOTKEY_PASSWORD"]
    hotkey.write_bytes(wallet_keyfile.legacy_encrypt_keyfile_data(KEY_FILE, password))
    credentials.write_text(CREDENTIALS)
    return {
        **{name: value for name, value in SECRETS.items() if name.startswith("RELAY_")},
        "RELAY_NATS_USER": "relay",
        "RELAY_NATS_CREDS": str(credentials),
        "RELAY_NATS_URL": f"nats://u:{SECRETS['password in RELAY_NATS_URL']}@127.0.0.1:1",
        "RELAY_FACILITATOR_URL": f"ws://u:{SECRETS['password in RELAY_FACILITATOR_URL']}@127.0.0.1:1/ws/v0/",
        "RELAY_FACILITATOR_HEADERS": f"X-Key: {SECRETS['header in RELAY_FACILITATOR_HEADERS']}; X-Validator-Version: 1",
        "RELAY_FACILITATOR_HOTKEY_FILE": str(hotkey),
        "RELAY_HTTP_PORT": "0",
        "RELAY_LOG_LEVEL": "debug",
        "RELAY_LOG_FORMAT": "json",
    }


def only(way, planted):
    """`planted` without the other ways to sign in at NATS."""
    others = {name for names in SIGN_IN.values() for name in names if name not in SIGN_IN[way]}
    kept = {name: value for name, value in planted.items() if name not in others}
    return {"RELAY_NATS_URL": "nats://127.0.0.1:1"} | kept


def address(server, user="other"):
    """The address of `server` with a password in it."""
    return f"nats://{user}:{SECRETS['password in RELAY_NATS_URL']}@127.0.0.1:{server.port}"


def login(user, password):
    return f'authorization: {{user: "{user}", password: "{password}"}}'


LOGINS = {
    "password": login("relay", SECRETS["RELAY_NATS_PASSWORD"]),
    "address": login("other", SECRETS["password in RELAY_NATS_URL"]),
}


SERVED = {
    "password": ("json", HOTKEY, "connected to the"),
    "address": ("console", STRANGER, "refuses this validator"),
}


@pytest.mark.parametrize("way", SERVED)
async def test_serve(tmp_path, planted, way):
    """Accepted or refused, and when NATS goes away: no log line and no probe shows a secret or the signature."""
    form, validator, outcome = SERVED[way]
    async with (
        NatsServer(extra_config=LOGINS[way]) as server,
        FacilitatorSimulator([validator.public_key.hex()]) as facilitator,
    ):
        url = facilitator.url.replace("//", f"//u:{SECRETS['password in RELAY_FACILITATOR_URL']}@")
        url += f"?t={SECRETS['token in RELAY_FACILITATOR_URL']}"
        here = {"RELAY_NATS_URL": address(server) if way == "address" else server.url}
        here |= {"RELAY_FACILITATOR_URL": url, "RELAY_LOG_FORMAT": form}
        settings = only(way, planted) | here
        async with started("-m", "relay", "serve", "--provision", settings=settings, folder=tmp_path) as relay:
            port = re.search(r"port\W+(\d+)", (await relay.says("probes and metrics"))[0])[1]
            await relay.says(outcome)
            await server.stop()
            await relay.says("disconnected from NATS")
            probes = [(await ask(port, path)).body for path in ("/livez", "/readyz", "/metrics")]
            await server.start()
            await relay.says("connected to NATS again")
            relay.process.terminate()
            assert 0 == await relay.ended()
            signature = json.loads(facilitator.received[0])["signature"]
    everything = "\n".join([*relay.lines, *probes])
    assert "relay_updates_total" in everything
    assert set() == shown(everything)
    assert signature.removeprefix("0x") not in everything


@pytest.mark.parametrize("way", LOGINS)
async def test_commands(tmp_path, planted, way):
    """Commands that connect to NATS print no secret, neither when they succeed nor when NATS refuses them."""
    async with NatsServer(extra_config=LOGINS[way]) as server:
        signed_in = only(way, planted) | {"RELAY_NATS_URL": address(server) if way == "address" else server.url}
        nobody = {"RELAY_NATS_URL": address(server, "nobody")} if way == "address" else {"RELAY_NATS_USER": "nobody"}
        codes, said = [], ""
        for environment in (signed_in, signed_in | nobody):
            async with started("-m", "relay", "provision", settings=environment, folder=tmp_path) as command:
                codes.append(await command.ended())
                said += "".join(command.lines)
    assert [0, 1] == codes
    assert "created stream JOB_STATUS" in said
    assert "Authorization Violation" in said
    assert set() == shown(said)


async def test_help(tmp_path, planted):
    """Help shows no value from the environment."""
    async with started("-m", "relay", "serve", "--help", settings=planted, folder=tmp_path) as command:
        assert 0 == await command.ended()
    assert command.said("SIGTERM")
    assert set() == shown("".join(command.lines))


async def test_traceback(tmp_path, planted):
    """A start that fails with an unexpected error prints a traceback without a secret or the authentication message."""
    async with started("-c", BREAK, "serve", settings=only("address", planted), folder=tmp_path) as command:
        assert 1 == await command.ended()
    assert command.said("RuntimeError: broken on purpose")
    assert [] == command.said("V0AuthenticationRequest")
    assert set() == shown("".join(command.lines))


REFUSED = {
    "password": (login("relay", "another"), {"user": "relay", "password": SECRETS["RELAY_NATS_PASSWORD"]}),
    "token": ('authorization: {token: "another"}', {"token": SECRETS["RELAY_NATS_TOKEN"]}),
    "address": (login("relay", "another"), {}),
    "credentials": (f"authorization: {{users: [{{nkey: {NKEY_USER}}}]}}", {"creds": "user.creds"}),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused_by_nats(planted, case):
    """With any kind of credentials, neither the error of a refusal nor its traceback shows a secret."""
    config, given = REFUSED[case]
    if "creds" in given:
        given = {"creds": planted["RELAY_NATS_CREDS"]}
    async with NatsServer(extra_config=config) as server:
        urls = (address(server),) if case == "address" else (server.url,)
        with pytest.raises(BrokerUnavailable) as caught:
            await connect(NatsSettings(urls=urls, **given), name="test")
    assert "Authorization Violation" in str(caught.value)
    assert set() == shown(told(caught.value))


def test_refused_settings(planted):
    """Whichever setting is refused, the error shows none of the secrets."""
    refused = {"RELAY_NATS_URL": f"nats://u:{SECRETS['password in RELAY_NATS_URL']}@h:port"}
    wrong = {row.variable: refused.get(row.variable, "no/such\nthing") for row in settings_table()}
    hosts = {"RELAY_HTTP_HOST", "RELAY_CONSOLE_HOST"}
    free = SECRETS.keys() | hosts | {"RELAY_NATS_USER", "RELAY_FACILITATOR_HOTKEY_FILE"}
    for variable in wrong.keys() - free:
        with pytest.raises(ConfigurationError) as caught:
            load_settings(planted | {variable: wrong[variable]}, None)
        assert variable == caught.value.variable
        assert set() == shown(told(caught.value))


def test_refused_hotkey(tmp_path):
    """The error for an unusable hotkey file shows neither its content nor its password."""
    path = tmp_path / "hotkey"
    broken = {
        "cut short": KEY_FILE[:-2],
        "changed": KEY_FILE.replace(b"0x", b"0y").replace(MNEMONIC.encode(), b"0" + MNEMONIC.encode()),
        "mnemonic alone": MNEMONIC.encode(),
        "encrypted": wallet_keyfile.legacy_encrypt_keyfile_data(KEY_FILE, "another"),
    }
    for content in broken.values():
        path.write_bytes(content)
        with pytest.raises(IdentityError) as caught:
            load_signer(path, SECRETS["RELAY_FACILITATOR_HOTKEY_PASSWORD"])
        assert set() == shown(told(caught.value))


@pytest.mark.parametrize("way", SIGN_IN)
def test_repr(planted, way):
    """`repr` of the settings and of all objects made from them shows no secret."""
    settings = load_settings(only(way, planted), None)
    password = settings.facilitator.hotkey_password
    signer = load_signer(settings.facilitator.hotkey_file, password.get_secret_value())
    printed = [f"{settings} {settings!r} {settings.nats!r} {settings.facilitator!r}", f"{signer} {signer!r}"]
    assert HOTKEY.public_key.hex() in printed[1]
    assert set() == shown("".join(printed))


@pytest.mark.parametrize("padding", ["", "x" * 300])
def test_content_instead_of_a_path(planted, padding):
    """If the credentials themselves are given instead of their file, the error does not repeat them."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(planted | {"RELAY_NATS_CREDS": CREDENTIALS + padding}, None)
    assert "RELAY_NATS_CREDS" == caught.value.variable
    assert set() == shown(told(caught.value))


async def varz(server):
    """A nats-server's own status."""
    return json.loads((await ask(int(server.monitor_url.rpartition(":")[2]), "/varz")).body)


async def test_loopback():
    """The embedded servers, the simulator and the probes listen on loopback; only probes can be told otherwise."""
    async with NatsServer() as server, FacilitatorSimulator() as simulator:
        told = await varz(server)
        bound = {listening.getsockname()[0] for each in simulator._servers for listening in each.sockets}
    assert ("127.0.0.1", "127.0.0.1") == (told["host"], told["http_host"])
    assert {"127.0.0.1"} == bound
    assert "127.0.0.1" == HttpSettings().host


async def test_cluster_on_loopback():
    """The nodes of a local cluster use loopback for clients and for each other."""
    async with NatsCluster() as cluster:
        told = [await varz(node) for node in cluster.nodes]
    assert [("127.0.0.1", "127.0.0.1")] * 3 == [(each["host"], each["cluster"]["addr"]) for each in told]
