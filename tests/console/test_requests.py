"""Which requests are let in: hosts, origins, proxies, prefixes."""

import pytest

from relay.console.requests import cookie_of, is_known_host, is_same_origin, user_of, without_prefix
from relay.contract.console_settings import ConsoleSettings

LOOPBACK = ConsoleSettings()
OPEN = ConsoleSettings(host="0.0.0.0")
BEHIND = ConsoleSettings(host="0.0.0.0", user_header="X-User", proxies=("10.1.0.0/16", "fd00::/8"))


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8090", True),
        ("localhost:8090", True),
        ("[::1]:8090", True),
        ("LOCALHOST", True),
        ("evil.example:8090", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:8090", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_host_on_loopback(host, known):
    """On loopback only names of this machine are known, so no other site can give itself its address."""
    assert known == is_known_host(host, LOOPBACK)


def test_host_elsewhere():
    """Elsewhere any name is: the cookie says who is signed in."""
    assert is_known_host("console.example", OPEN)
    assert not is_known_host("", OPEN)


@pytest.mark.parametrize(
    ("origin", "same"),
    [
        ("http://console.example:8090", True),
        ("https://CONSOLE.example:8090", True),
        ("http://console.example", False),
        ("http://evil.example:8090", False),
        ("http://console.example:8090.evil.example", False),
        ("null", False),
        ("", False),
        ("file://console.example:8090", False),
        ("http://[", False),
    ],
)
def test_origin(origin, same):
    """A request that changes something, and each WebSocket, must come from the page itself."""
    assert same == is_same_origin(origin, "console.example:8090")


@pytest.mark.parametrize(
    ("peer", "user"),
    [("10.1.2.3", "ann"), ("::ffff:10.1.2.3", "ann"), ("fd00::1", "ann"), ("10.2.0.1", ""), ("", ""), ("junk", "")],
)
def test_user_of_a_trusted_proxy(peer, user):
    """The header counts only from the addresses of the proxies."""
    assert user == user_of({"x-user": "ann"}, peer, BEHIND)
    assert user_of({}, peer, BEHIND) == ""
    assert user_of({"x-user": "ann"}, peer, OPEN) == ""


@pytest.mark.parametrize(
    ("text", "value"), [("relay_console=abc", "abc"), ("a=b; relay_console=abc; c=d", "abc"), ("", ""), ("]=[", "")]
)
def test_cookie(text, value):
    assert value == cookie_of({"cookie": text}, "relay_console")


@pytest.mark.parametrize(
    ("path", "prefix", "found"),
    [
        ("/jobs", "", "/jobs"),
        ("/relay/jobs", "/relay", "/jobs"),
        ("/jobs", "/relay", "/jobs"),
        ("/relay/", "/relay", "/"),
        ("/relay", "/relay", None),
        ("/relayed/jobs", "/relay", "/relayed/jobs"),
    ],
)
def test_prefix(path, prefix, found):
    """Both kinds of proxies are understood: those that remove the prefix, and those that leave it."""
    assert found == without_prefix(path, prefix)
