import json
import os
from pathlib import Path

import pytest
from bittensor_wallet import CRYPTO_ED25519, Keyfile, Keypair
from bittensor_wallet import keyfile as wallet_keyfile

from relay.contract.errors import IdentityError
from relay.facilitator.identity import load_signer

PASSWORD = "correct horse battery staple"
MNEMONIC = "bottom drive obey lake curtain smoke basket hold race lonely fit walk"
KEYPAIR = Keypair.create_from_mnemonic(MNEMONIC)
PUBLIC_KEY = KEYPAIR.public_key or b""


def written(path: Path, keypair: Keypair) -> Path:
    Keyfile(str(path)).set_keypair(keypair, encrypt=False)
    return path


ENCRYPTED = Path(__file__).parent / "encrypted_hotkey"
"""The hotkey file as bittensor-wallet 4 wrote it, with the password. (To write or to open one takes 5 seconds.)"""


@pytest.fixture(scope="module")
def vault(tmp_path_factory) -> Path:
    """A hotkey file as older wallets write it: an Ansible vault, which opens in milliseconds."""
    path = tmp_path_factory.mktemp("vault") / "hotkey"
    content = wallet_keyfile.serialized_keypair_to_keyfile_data(KEYPAIR)
    path.write_bytes(wallet_keyfile.legacy_encrypt_keyfile_data(content, PASSWORD))
    return path


@pytest.fixture
def plain(tmp_path) -> Path:
    return written(tmp_path / "hotkey", KEYPAIR)


def refusal(path: Path, password: str | None = None) -> tuple[str, str]:
    with pytest.raises(IdentityError) as caught:
        load_signer(path, password)
    assert str(caught.value).splitlines() == [str(caught.value)]
    assert caught.value.path == str(path)
    return caught.value.problem, caught.value.remedy


def verifies(public_key_hex: str, signature: str) -> bool:
    """Whether the signature fits the public key, checked as the Facilitator does."""
    return Keypair(public_key=public_key_hex).verify(bytes.fromhex(public_key_hex), signature)


def test_plain_file_signs(plain):
    """From a plain hotkey file come its public key, and a signature that fits it."""
    signer = load_signer(plain, None)
    signature = signer.sign_public_key()
    assert signer.public_key_hex == PUBLIC_KEY.hex()
    assert (signature[:2], len(signature)) == ("0x", 130)
    assert verifies(signer.public_key_hex, signature) is True
    assert verifies(Keypair.create_from_uri("//Other").public_key.hex(), signature) is False


@pytest.mark.timeout(300)  # the key derivation takes seconds by design, and longer on a busy machine
def test_encrypted_file_signs(capfd):
    """A password-protected hotkey file signs as well, and prints nothing."""
    signer = load_signer(ENCRYPTED, PASSWORD)
    assert verifies(PUBLIC_KEY.hex(), signer.sign_public_key()) is True
    assert tuple(capfd.readouterr()) == ("", "")


def test_vault_signs(vault, capfd):
    """A hotkey file in the older encrypted form signs as well, and prints nothing."""
    signer = load_signer(vault, PASSWORD)
    assert verifies(PUBLIC_KEY.hex(), signer.sign_public_key()) is True
    assert tuple(capfd.readouterr()) == ("", "")


def test_wrong_password(vault, capfd):
    """The error for a wrong password says so, without showing the password."""
    problem, remedy = refusal(vault, "not the password")
    assert problem == "the password does not open it"
    assert remedy == "check RELAY_FACILITATOR_HOTKEY_PASSWORD, or restore the file if it was damaged"
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize("password", [None, ""])
def test_password_missing(vault, password, monkeypatch, capfd):
    """An encrypted file without a password is refused: no prompt, and the wallet's own variable is not read."""
    Keyfile(str(vault)).save_password_to_env(PASSWORD)
    monkeypatch.setenv(Keyfile(str(vault)).env_var_name(), "bm90IHVzZWQ=")
    problem, remedy = refusal(vault, password)
    assert problem == "it is encrypted and no password is given"
    assert remedy == "set RELAY_FACILITATOR_HOTKEY_PASSWORD"
    assert tuple(capfd.readouterr()) == ("", "")


def test_unneeded_password(plain):
    """A password for a plain file does no harm."""
    assert load_signer(plain, "unneeded").public_key_hex == PUBLIC_KEY.hex()


def test_missing_file(tmp_path):
    """A missing file is reported as missing."""
    assert refusal(tmp_path / "nothing") == ("there is no such file", "check RELAY_FACILITATOR_HOTKEY_FILE")


def test_no_regular_file(tmp_path):
    """A folder, or a pipe that would block the start, is refused without reading it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    expected = ("it is not a regular file", "set RELAY_FACILITATOR_HOTKEY_FILE to the hotkey file itself")
    assert [refusal(tmp_path), refusal(pipe)] == [expected, expected]


def test_unreadable_file(tmp_path):
    """For a file without read permission the system's reason is reported."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    problem, remedy = refusal(loop)
    assert problem == "it cannot be read (Too many levels of symbolic links)"
    assert remedy == "let the user that runs the relay read it"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="text"),
        pytest.param(bytes(range(256)), id="binary"),
        pytest.param(b"{}", id="empty object"),
        pytest.param(b"[]", id="array"),
        pytest.param(json.dumps({"secretSeed": "0xsecret"}).encode(), id="seed not hex"),
        pytest.param(json.dumps({"secretPhrase": "secret words"}).encode(), id="not a mnemonic"),
        pytest.param(wallet_keyfile.serialized_keypair_to_keyfile_data(KEYPAIR) + b" " * 70_000, id="too large"),
    ],
)
def test_not_a_key_file(tmp_path, content):
    """Any file that is not a key file is reported as such, without its content."""
    path = tmp_path / "hotkey"
    path.write_bytes(content)
    remedy = "set RELAY_FACILITATOR_HOTKEY_FILE to a hotkey file made by btcli or bittensor-wallet"
    assert refusal(path) == ("it is not a bittensor wallet key file", remedy)


def test_truncated_encrypted_file(tmp_path):
    """An encrypted file too short for its own header is reported as cut short."""
    path = tmp_path / "hotkey"
    path.write_bytes(b"$NACL" + bytes(39))
    assert refusal(path, PASSWORD) == ("it is encrypted but cut short", "restore it from a backup")


def test_outdated_encryption(tmp_path):
    """For a file in a form that the wallet library cannot open any more, the error does not blame the password."""
    path = tmp_path / "hotkey"
    path.write_bytes(b"gAAAAABh" + b"A" * 100)
    problem, remedy = refusal(path, PASSWORD)
    assert problem == "it is encrypted in an outdated form (Fernet) that bittensor-wallet no longer opens"
    assert remedy == "create the file again from its mnemonic with btcli"


def test_public_key_only(tmp_path):
    """A public key file cannot sign, and the error names the other file."""
    path = written(tmp_path / "hotkeypub.txt", Keypair(ss58_address=KEYPAIR.ss58_address))
    problem, remedy = refusal(path)
    assert problem == "it holds a public key only, which cannot sign"
    assert remedy == "set RELAY_FACILITATOR_HOTKEY_FILE to the hotkey itself, which is not the file that ends in pub"


def test_other_kind_of_key(tmp_path):
    """An ed25519 key is refused, because the Facilitator verifies sr25519 only."""
    path = written(tmp_path / "hotkey", Keypair.create_from_mnemonic(MNEMONIC, crypto_type=CRYPTO_ED25519))
    problem, remedy = refusal(path)
    assert problem == "its key is not sr25519, the only kind that the Facilitator verifies"
    assert remedy == "use the validator's sr25519 hotkey"


def test_home_folder(plain, monkeypatch):
    """A path that begins with a tilde is resolved to the home folder, as the wallet tools do."""
    monkeypatch.setenv("HOME", str(plain.parent))
    assert load_signer(Path("~/hotkey"), None).public_key_hex == PUBLIC_KEY.hex()


def test_repr(plain):
    """`repr` shows the public key and nothing else."""
    assert repr(load_signer(plain, None)) == f"Signer({PUBLIC_KEY.hex()})"
