import pytest

from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError

URL = {"RELAY_FACILITATOR_URL": "wss://facilitator.example/ws/v0/"}


def proxy_of(**variables):
    return load_settings(URL | variables, None).facilitator.proxy_url


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"https_proxy": "p:1", "HTTPS_PROXY": "http://q"}, "http://p:1"),
        ({"ALL_PROXY": "http://a", "HTTPS_PROXY": "http://p"}, "http://p"),
        ({"all_proxy": "https://u:p@a"}, "https://u:p@a"),
        ({"HTTP_PROXY": "http://p"}, None),
        ({"HTTPS_PROXY": "http://p", "RELAY_FACILITATOR_PROXY": "http://ours"}, "http://ours"),
        ({"NO_PROXY": "*", "RELAY_FACILITATOR_PROXY": "http://ours"}, "http://ours"),
        ({"HTTPS_PROXY": "http://p", "RELAY_FACILITATOR_URL": "ws://127.0.0.1:1/ws/v0/"}, None),
        ({"HTTPS_PROXY": "http://p", "RELAY_FACILITATOR_URL": "ws://localhost:1/ws/v0/"}, None),
    ],
)
def test_usual_variables(variables, proxy):
    """The setting wins over the usual variables, HTTPS_PROXY over ALL_PROXY, lower case over capitals."""
    assert proxy == proxy_of(**variables)


@pytest.mark.parametrize(
    ("excluded", "used"),
    [
        ("facilitator.example", False),
        ("other, .example", False),
        ("*.example", False),
        ("facilitator.example:443", True),
        ("*", False),
        ("tator.example", True),
        ("", True),
    ],
)
def test_no_proxy(excluded, used):
    """NO_PROXY excludes hosts and whole domains; a port in it must be the one of the address."""
    assert used is (proxy_of(HTTPS_PROXY="http://p", no_proxy=excluded) is not None)


@pytest.mark.parametrize(
    "value", ["socks5://u:secret@p:1", "http://secret@p", "http://u:secret@p/path", "ftp://u:secret@p"]
)
@pytest.mark.parametrize("variable", ["RELAY_FACILITATOR_PROXY", "ALL_PROXY"])
def test_proxy_that_cannot_be_used(variable, value):
    """The variable is named, also one of all programs; what may be a password is not shown."""
    with pytest.raises(ConfigurationError) as refused:
        proxy_of(**{variable: value})
    assert variable == refused.value.variable
    assert "http://host:port" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(load_settings(URL | {"ALL_PROXY": "http://u:secret@p"}, None))
