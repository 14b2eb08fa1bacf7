"""What is wrong with an address or a path, in words, and without showing it."""

from pathlib import Path

import pytest

from relay.contract.addresses import Unusable, existing_file, facilitator_address, nats_address, parse_proxy
from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError

NO_HOST_HAS_IT = "its host has an empty part, one of more than 63 characters, or one that no host has"
NO_PORT = "its port is not a number from 1 to 65535"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("wss://facilitator..example/ws/v0/", NO_HOST_HAS_IT),
        (f"wss://{'a' * 64}.example/ws/v0/", NO_HOST_HAS_IT),
        ("wss://[::1/ws/v0/", "what is between [ and ] is no IPv6 address"),
        ("wss://f:0/ws/v0/", NO_PORT),
        ("wss://f:65536/ws/v0/", NO_PORT),
        ("wss://f:443x/ws/v0/", NO_PORT),
        ("https://f/ws/v0/", "it begins with none of ws://, wss://"),
        ("wss:///ws/v0/", "it has no host"),
        ("wss://a b/ws/v0/", "its host has a blank, or a character that cannot be shown"),
        ("wss://f", "it has no path"),
        ("wss://f/", "it has no path"),
        ("wss://f/ws/v0", "its path does not end with a slash"),
        ("wss://f/ws/v0/#x", "it has a part after #; a # in a password or a path is written as %23"),
        ("wss://user@f/ws/v0/", "it has a user without a password"),
        ("wss://user:%ff@f/ws/v0/", "its user or password, percent-decoded, is not UTF-8"),
    ],
)
def test_facilitator(address, problem):
    """Each address that is not allowed has its own reason."""
    with pytest.raises(Unusable) as refused:
        facilitator_address(address)
    assert problem == str(refused.value)


@pytest.mark.parametrize(
    ("check", "address", "problem"),
    [
        (nats_address, "nats://user:pa/ss@h:4222", NO_PORT),
        (nats_address, "nats://h:4222/x", "it has a path; a / in a password is written as %2F"),
        (nats_address, "h:4222", "it begins with none of nats://, tls://, ws://, wss://"),
        (parse_proxy, "http://proxy:3128/x", "it has more than a host and a port"),
        (parse_proxy, "http://me@proxy:3128", "it has a user without a password"),
        (parse_proxy, "socks5://proxy:1080", "it begins with none of http://, https://"),
    ],
)
def test_nats_and_proxies(check, address, problem):
    """So it is for nats-servers and proxies."""
    with pytest.raises(Unusable) as refused:
        check(address)
    assert problem == str(refused.value)


@pytest.mark.parametrize("address", ["nats://[fe80::1%25eth0]:4222", "nats://[::1]", "tls://Ünïcode.example:1"])
def test_fine(address):
    """Addresses with a zone, without a port, or in another script are taken as they are."""
    assert address == nats_address(address)


def test_scheme_in_capitals():
    """nats-py would take the whole address for a host name."""
    assert "nats://User:NATS@h:1" == nats_address("NATS://User:NATS@h:1")


@pytest.mark.parametrize(
    ("name", "problem"),
    [("folder", "it is no file"), ("nothing", "there is no such file"), ("n" * 300, "it cannot be read: ")],
)
def test_files(tmp_path: Path, name, problem):
    """A path that is no file says what it is."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(Unusable) as refused:
        existing_file(tmp_path / name)
    assert str(refused.value).startswith(problem)


def test_the_line():
    """The line names the setting, what is wrong, and what is allowed; a secret in the address is not shown."""
    given = {"RELAY_FACILITATOR_URL": "wss://me:hidden@facilitator..example/ws/v0/"}
    with pytest.raises(ConfigurationError) as refused:
        load_settings(given, None)
    assert str(refused.value).startswith(
        f"RELAY_FACILITATOR_URL='***@facilitator..example/ws/v0/' is not allowed: {NO_HOST_HAS_IT}; give a ws:// or wss://"
    )
