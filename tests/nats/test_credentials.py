"""Authentication at NATS without a password: with NKeys, and with JWTs in credentials files."""

import json

import nkeys
import pytest
from decentralized import Decentralized, new_key, public
from guarded_nats import USERS
from relay_kit import Scene, new_job

from relay.contract.errors import BrokerUnavailable, ConfigurationError
from relay.contract.settings import NatsSettings
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import connect


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


@pytest.mark.usefixtures("users_have_passwords")
async def test_a_user_signs_in_with_an_nkey(tmp_path):
    """If users.conf has an NKey instead of name and password, RELAY_NATS_NKEY_FILE is accepted; another key is not."""
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
