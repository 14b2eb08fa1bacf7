"""How a client authenticates to NATS, and which servers it trusts: settings as nats-py's options.

Files are read each time, and nothing of them is kept: a certificate, key, authority or credentials file that was
renewed on disk is used from the next connection on.
"""

import importlib.util
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import RawCredentials

from relay.contract.errors import ConfigurationError

if TYPE_CHECKING:  # see relay/producer/__init__.py
    from relay.contract.settings import NatsSettings

_USER_SEED: Final = re.compile(rb"SUA[A-Z2-7]{55}")
_CREDENTIALS: Final = re.compile(
    rb"-+BEGIN NATS USER JWT-+\n[\w.-]+\n.*-+BEGIN USER NKEY SEED-+\n" + _USER_SEED.pattern + rb"\n", re.DOTALL
)


def connect_options(settings: "NatsSettings") -> dict[str, Any]:
    """The options of nats-py's `Client.connect` for these settings and what is in their files now.

    Raises ConfigurationError for credentials or certificates that cannot be used.
    """
    options: dict[str, Any] = {"user": settings.user, "inbox_prefix": settings.inbox_prefix}
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    if settings.token is not None:
        options["token"] = settings.token.get_secret_value()
    if settings.creds is not None:
        _require_nkeys("RELAY_NATS_CREDS", settings.creds)
        options["user_credentials"] = RawCredentials(_credentials(settings.creds))
    if settings.nkey_file is not None:
        _require_nkeys("RELAY_NATS_NKEY_FILE", settings.nkey_file)
        options["nkeys_seed_str"] = _seed(settings.nkey_file)
    if settings.ca_file or settings.cert_file:
        options["tls"] = _tls(settings)
    return options


def _require_nkeys(variable: str, path: Path) -> None:
    # nats-py would try it with each server, and fail with an error that nothing catches.
    if importlib.util.find_spec("nkeys") is None:
        allowed = "it needs the package nkeys, which is not installed: pip install 'job-status-relay[nkeys]'"
        raise ConfigurationError(variable, str(path), allowed)


def _credentials(path: Path) -> str:
    # nats-py gets the text, not the path: the file may be changed at any moment. Without the line before the JWT,
    # nats-py would search for ever and block the event loop. It cuts one character off each line, so lines must end
    # with \n. On an invalid seed it raises errors of nkeys, which nothing catches.
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError("RELAY_NATS_CREDS", str(path), f"a readable credentials file ({error})") from error
    if not _CREDENTIALS.search(text):
        allowed = "a credentials file with a user JWT and its NKey seed (SUA...), each on a line that ends as on Unix"
        raise ConfigurationError("RELAY_NATS_CREDS", str(path), allowed)
    return text.decode(errors="replace")


def _seed(path: Path) -> str:
    # On an invalid seed nats-py raises errors of nkeys, which nothing catches.
    try:
        seed = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError("RELAY_NATS_NKEY_FILE", str(path), f"a readable file ({error})") from error
    if not _USER_SEED.fullmatch(seed):
        raise ConfigurationError("RELAY_NATS_NKEY_FILE", str(path), "a file with the seed of a user's NKey (SUA...)")
    return seed.decode()


def _tls(settings: "NatsSettings") -> ssl.SSLContext:
    variable, path = "RELAY_NATS_CA_FILE", settings.ca_file
    try:
        context = ssl.create_default_context(cafile=path)
        if settings.cert_file is not None:
            variable, path = "RELAY_NATS_CERT_FILE", settings.cert_file
            context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(variable, str(path), f"a PEM file that fits its purpose ({error})") from error
    return context


def _no_password() -> str:
    # Without it, Python would ask on the terminal for the password of an encrypted key, and block.
    return ""
