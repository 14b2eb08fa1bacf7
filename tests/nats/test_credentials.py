"""Authentication at NATS without a password: with NKeys, and with JWTs in credentials files."""

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys
import pytest
from guarded_nats import USERS, passwords
from relay_kit import Scene, new_job

from relay.contract.errors import BrokerUnavailable, ConfigurationError
from relay.contract.settings import NatsSettings
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import connect

UNLIMITED = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
STORAGE = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


def new_key(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def public(key: nkeys.KeyPair) -> str:
    return key.public_key.decode()


def jwt(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, claims: dict[str, Any]) -> str:
    """A token of NATS' decentralized authentication: the claims of `issuer` about `subject`."""
    body = {"iat": int(time.time()), "iss": public(issuer), "sub": public(subject), "name": name}
    body["nats"] = claims | {"version": 2}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, body))
    return f"{signed}.{base64url(issuer.sign(signed.encode()))}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Decentralized:
    """An operator, an account with JetStream, the system account, and users of the first account."""

    def __init__(self) -> None:
        self._operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = new_key(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """The configuration with which a server trusts them."""
        operator = jwt(self._operator, self._operator, "operator", {"type": "operator"})
        accounts = {
            public(key): jwt(self._operator, key, name, {"limits": UNLIMITED | limits, "type": "account"})
            for key, name, limits in ((self._account, "RELAY", STORAGE), (self._system, "SYS", {}))
        }
        preloaded = "\n".join(f"{key}: {token}" for key, token in accounts.items())
        trust = f"operator: {operator}\nsystem_account: {public(self._system)}"
        return f"{trust}\nresolver: MEMORY\nresolver_preload {{\n{preloaded}\n}}"

    def credentials(self, folder: Path, name: str) -> Path:
        """Write the credentials file of a new user."""
        user = new_key(nkeys.PREFIX_BYTE_USER)
        claims = {**dict.fromkeys(("subs", "data", "payload"), -1), "type": "user", "pub": {}, "sub": {}}
        file = folder / f"{name}.creds"
        token = jwt(self._account, user, name, claims)
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return file


async def test_a_relay_signs_in_with_a_credentials_file(tmp_path):
    """With RELAY_NATS_CREDS a relay works on a server that knows users only by their JWTs."""
    realm = Decentralized()
    async with (
        NatsServer(extra_config=realm.config) as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, NATS_CREDS=str(realm.credentials(tmp_path, "relay"))) as scene,
        scene.relay(),
    ):
        await scene.publish_life(new_job())
        assert [] == await scene.broken_promises()


async def test_credentials_of_another_operator_are_refused(tmp_path):
    """A credentials file that the server's operator did not sign is rejected."""
    async with NatsServer(extra_config=Decentralized().config) as server:
        settings = NatsSettings(urls=(server.url,), creds=Decentralized().credentials(tmp_path, "stranger"))
        with pytest.raises(BrokerUnavailable, match="Authorization Violation"):
            await connect(settings, name="test")


async def test_a_user_signs_in_with_an_nkey(tmp_path, monkeypatch):
    """If users.conf has an NKey instead of name and password, RELAY_NATS_NKEY_FILE is accepted; another key is not."""
    for name, value in passwords().items():
        monkeypatch.setenv(name, value)
    right, wrong = (new_key(nkeys.PREFIX_BYTE_USER) for _ in range(2))
    by_key = USERS.replace("user: relay\n                password: $NATS_RELAY_PASSWORD", f"nkey: {public(right)}")
    files = []
    for number, key in enumerate((right, wrong)):
        files.append(tmp_path / f"{number}.nk")
        files[-1].write_text(key.seed.decode() + "\n")
    async with NatsServer(extra_config=by_key) as server:
        settings = NatsSettings(urls=(server.url,), nkey_file=files[0], inbox_prefix="_INBOX_relay")
        client = await connect(settings, name="test")
        answered = json.loads((await client.request("$JS.API.INFO")).data)
        await client.close()
        with pytest.raises(BrokerUnavailable, match="Authorization Violation"):
            await connect(settings.model_copy(update={"nkey_file": files[1]}), name="test")
    assert "io.nats.jetstream.api.v1.account_info_response" == answered["type"]


@pytest.mark.parametrize("content", [b"", b"not a seed", b"\xff\xfe", b"SU" + b"A" * 40, b"SO" + b"A" * 56])
async def test_a_file_without_a_seed_is_a_configuration_error(tmp_path, content):
    """A file without a user's seed is refused before it is used, with its variable and without its content."""
    file = tmp_path / "relay.nk"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="RELAY_NATS_NKEY_FILE") as refused:
        await connect(NatsSettings(urls=("nats://127.0.0.1:1",), nkey_file=file), name="test")
    assert not content or content.decode(errors="replace") not in str(refused.value)
