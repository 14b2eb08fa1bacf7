"""The validator's hotkey: the key pair with which the relay proves to the Facilitator who it is."""

import contextlib
import io
import os
from pathlib import Path
from typing import Final

from bittensor_wallet import CRYPTO_SR25519, Keypair
from bittensor_wallet import keyfile as wallet_keyfile
from bittensor_wallet.errors import ConfigurationError as NoPrivateKey
from bittensor_wallet.errors import KeyFileError

from relay.contract.errors import IdentityError

UNUSED_HOTKEY: Final = "RELAY_FACILITATOR_HOTKEY_FILE is set and not used, because RELAY_FACILITATOR_AUTH is none"
_PASSWORD: Final = "RELAY_FACILITATOR_HOTKEY_PASSWORD"  # noqa: S105 - the name of a variable
_FILE: Final = "RELAY_FACILITATOR_HOTKEY_FILE"
_MAX_KEY_FILE_BYTES: Final = 65536
_MIN_NACL_BYTES: Final = len("$NACL") + 24 + 16
"""Prefix, nonce and authenticator. On less bittensor-wallet panics, which `except Exception` does not catch."""


class Signer:
    """An sr25519 hotkey that can sign in at the Facilitator. Its `repr` shows the public key and nothing else."""

    __slots__ = ("_keypair", "_public_key", "public_key_hex")

    def __init__(self, keypair: Keypair, public_key: bytes) -> None:
        self._keypair = keypair
        self._public_key = public_key
        self.public_key_hex: Final = public_key.hex()
        """64 hexadecimal digits, without `0x`."""

    def __repr__(self) -> str:
        return f"Signer({self.public_key_hex})"

    def sign_public_key(self) -> str:
        """The signature of the 32 raw bytes of the public key: `0x` and 128 hexadecimal digits, new each time."""
        return "0x" + self._keypair.sign(self._public_key).hex()


def load_signer(path: Path, password: str | None) -> Signer:
    """Load the hotkey from the bittensor wallet file `path`. `password` is used only if the file is encrypted.

    Never asks on the terminal and reads no environment variable. Decrypting blocks for some 5 seconds and takes
    512 MiB, because of the wallet format's key derivation: call this before the event loop runs.

    Raises IdentityError if the file is missing or unreadable, is not a key file, lacks the private key, holds
    a key of another kind than sr25519, or if the password is missing or wrong.
    """
    content = _read(path)
    if wallet_keyfile.keyfile_data_is_encrypted(content):
        content = _decrypt(path, content, password)
    return _signer(path, content)


def _read(path: Path) -> bytes:
    # os.path, because Path.expanduser fails where the user has no home, as in a container with a numeric user.
    place = Path(os.path.expanduser(path))  # noqa: PTH111
    try:
        if place.exists() and not place.is_file():  # a pipe or terminal would block
            raise IdentityError(str(path), "it is not a regular file", f"set {_FILE} to the hotkey file itself")
        with place.open("rb") as file:
            content = file.read(_MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        raise IdentityError(str(path), "there is no such file", f"check {_FILE}") from None
    except OSError as error:
        remedy = "let the user that runs the relay read it"
        raise IdentityError(str(path), f"it cannot be read ({error.strerror})", remedy) from error
    if len(content) > _MAX_KEY_FILE_BYTES:
        raise _not_a_key_file(path)
    return content


def _decrypt(path: Path, content: bytes, password: str | None) -> bytes:
    if wallet_keyfile.keyfile_data_is_encrypted_legacy(content):
        # bittensor-wallet recognises this form but decrypts it with a random key, so it would always say that the
        # password is wrong.
        problem = "it is encrypted in an outdated form (Fernet) that bittensor-wallet no longer opens"
        raise IdentityError(str(path), problem, "create the file again from its mnemonic with btcli")
    if wallet_keyfile.keyfile_data_is_encrypted_nacl(content) and len(content) < _MIN_NACL_BYTES:
        raise IdentityError(str(path), "it is encrypted but cut short", "restore it from a backup")
    if not password:  # without one the library would ask on the terminal
        raise IdentityError(str(path), "it is encrypted and no password is given", f"set {_PASSWORD}")
    try:
        # The library prints its progress, and standard output belongs to the command.
        with contextlib.redirect_stdout(io.StringIO()):
            return wallet_keyfile.decrypt_keyfile_data(content, password)
    except KeyFileError:
        remedy = f"check {_PASSWORD}, or restore the file if it was damaged"
        raise IdentityError(str(path), "the password does not open it", remedy) from None


def _signer(path: Path, content: bytes) -> Signer:
    try:
        keypair = wallet_keyfile.deserialize_keypair_from_keyfile_data(content)
    except KeyFileError:  # its text may quote the secret
        raise _not_a_key_file(path) from None
    public_key = keypair.public_key
    if public_key is None:
        raise _not_a_key_file(path)
    if keypair.crypto_type != CRYPTO_SR25519:
        problem = "its key is not sr25519, the only kind that the Facilitator verifies"
        raise IdentityError(str(path), problem, "use the validator's sr25519 hotkey")
    try:
        keypair.sign(public_key)
    except NoPrivateKey:
        remedy = f"set {_FILE} to the hotkey itself, which is not the file that ends in pub"
        raise IdentityError(str(path), "it holds a public key only, which cannot sign", remedy) from None
    return Signer(keypair, public_key)


def _not_a_key_file(path: Path) -> IdentityError:
    remedy = f"set {_FILE} to a hotkey file made by btcli or bittensor-wallet"
    return IdentityError(str(path), "it is not a bittensor wallet key file", remedy)
