"""NATS' decentralized authentication: an operator, accounts and users, known by their JWTs."""

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys

UNLIMITED = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
STORAGE = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


def new_key(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def public(key: nkeys.KeyPair) -> str:
    return key.public_key.decode()


def jwt(
    issuer: nkeys.KeyPair,
    subject: nkeys.KeyPair,
    name: str,
    claims: dict[str, Any],
    lifetime_s: int | None = None,
    *,
    later_s: int = 0,
) -> str:
    """A token of NATS' decentralized authentication: the claims of `issuer` about `subject`. `later_s`: newer."""
    body = {"iat": int(time.time()) + later_s, "iss": public(issuer), "sub": public(subject), "name": name}
    if lifetime_s is not None:
        body["exp"] = int(time.time()) + lifetime_s
    body["nats"] = claims | {"version": 2}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, body))
    return f"{signed}.{base64url(issuer.sign(signed.encode()))}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Decentralized:
    """An operator, an account with JetStream, the system account, and users of both accounts."""

    def __init__(self) -> None:
        self._operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = new_key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._users: dict[str, nkeys.KeyPair] = {}
        self._issued = 0

    @property
    def config(self) -> str:
        """The configuration with which a server trusts them. It takes other tokens from users of the system account."""
        operator = jwt(self._operator, self._operator, "operator", {"type": "operator"})
        system = jwt(self._operator, self._system, "SYS", {"limits": UNLIMITED, "type": "account"})
        preloaded = f"{public(self._system)}: {system}\n{public(self._account)}: {self.account()}"
        trust = f"operator: {operator}\nsystem_account: {public(self._system)}"
        return f'{trust}\nresolver: {{type: full, dir: "jwt"}}\nresolver_preload {{\n{preloaded}\n}}'

    def account(self, *, lifetime_s: int | None = None, **changes: Any) -> str:
        """A new token of the account, newer than those before: with other `limits`, or `revocations` of users."""
        self._issued += 1
        limits = UNLIMITED | STORAGE | changes.pop("limits", {})
        claims = {"limits": limits, "type": "account", **changes}
        return jwt(self._operator, self._account, "RELAY", claims, lifetime_s, later_s=self._issued)

    def user(self, name: str) -> str:
        """The public key of a user that has credentials."""
        return public(self._users[name])

    def credentials(self, folder: Path, name: str, *, lifetime_s: int | None = None, system: bool = False) -> Path:
        """Write the credentials file of a new user, valid for so many seconds, or without an end."""
        user = self._users[name] = new_key(nkeys.PREFIX_BYTE_USER)
        claims = {**dict.fromkeys(("subs", "data", "payload"), -1), "type": "user", "pub": {}, "sub": {}}
        file = folder / f"{name}.creds"
        token = jwt(self._system if system else self._account, user, name, claims, lifetime_s)
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return file
