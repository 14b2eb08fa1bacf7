"""What people and Kubernetes put into variables and `.env` files: taken as it was meant, or named."""

import pytest

from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError
from relay.contract.settings import Settings


def load(env_file=None, **variables):
    """The settings, and the notices."""
    notices = []
    settings = load_settings(
        {f"RELAY_{name}": value for name, value in variables.items()}, env_file, notice=notices.append
    )
    return settings, notices


@pytest.fixture
def env_file(tmp_path):
    """Writes a `.env` file with this text or these bytes."""

    def write(content):
        path = tmp_path / ".env"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("value", ["tcp://10.96.0.12:8080", "tcp://[fd00::12]:8080", "udp://10.96.0.12:53"])
def test_port_of_a_service(value):
    """A Service named relay-http sets RELAY_HTTP_PORT to an address: it is ignored, and a notice says so."""
    settings, notices = load(HTTP_PORT=value, HTTP_SERVICE_HOST="10.96.0.12", HTTP_PORT_8080_TCP_ADDR="10.96.0.12")
    assert Settings() == settings
    assert [f"RELAY_HTTP_PORT={value} is what Kubernetes sets beside a Service of that name; it is ignored"] == notices


@pytest.mark.parametrize(
    "service", ["RELAY", "RELAY_HTTP", "RELAY_NATS", "RELAY_FACILITATOR", "RELAY_LOG", "RELAY_METRICS"]
)
def test_service_of_any_name(service):
    """No Service in the namespace keeps the relay from starting."""
    link = "tcp://10.96.0.12:8080"
    names = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_WEB", "PORT", "PORT_8080_TCP")
    names += ("PORT_8080_TCP_PROTO", "PORT_8080_TCP_PORT", "PORT_8080_TCP_ADDR")
    values = ("10.96.0.12", "8080", "8080", link, link, "tcp", "8080", "10.96.0.12")
    injected = {f"{service}_{name}": value for name, value in zip(names, values, strict=True)}
    assert Settings() == load_settings(injected, None)


@pytest.mark.parametrize("name", ["relay_nats_url", "Relay_Nats_Url", "RELAY_NATS_url", "relay_nats_urls"])
def test_name_that_is_not_in_capitals(name, env_file):
    """A setting whose name is not in capitals is refused, in the environment and in the file."""
    for environ, path in (({name: "nats://a"}, None), ({}, env_file(f"{name}=nats://a\n"))):
        with pytest.raises(ConfigurationError, match="the nearest name is RELAY_NATS_URL") as caught:
            load_settings(environ, path)
        assert name == caught.value.variable


def test_lower_case_name_of_another_program():
    """A variable in lower case that resembles no setting belongs to somebody else."""
    assert Settings() == load_settings({"relay_on": "1", "relay_state_machine": "x"}, None)


def test_white_space_around_values(tmp_path):
    """A line end or blank around a value, as in a Secret made from a file, does not count."""
    file = tmp_path / "hotkey"
    plain = {"LANES": "8", "LOG_LEVEL": "debug", "HTTP_HOST": "::1", "RECEIPTS": "true", "NATS_INBOX_PREFIX": "_I"}
    plain |= {"NATS_URL": "nats://a", "FACILITATOR_URL": "wss://f/ws/v0/", "FACILITATOR_HOTKEY_FILE": str(file)}
    for around in ("{}\n", " {}", "{}\r\n", "\t{} "):
        assert load(**plain) == load(**{name: around.format(value) for name, value in plain.items()})


@pytest.mark.parametrize(
    ("given", "taken", "told"),
    [
        ("secret\n", "secret", "began or ended with a line end, which was removed"),
        ("\r\nsecret\r\n", "secret", "began or ended with a line end, which was removed"),
        ("secret ", "secret ", "begins or ends with white space, which is taken as part of it"),
        ('"secret"', '"secret"', "is in quotation marks, which are taken as part of it"),
        ("se cret", "se cret", None),
    ],
)
def test_white_space_around_secrets(given, taken, told):
    """Of a secret only line ends are removed. Whatever else may be a mistake is named, without the secret."""
    for name, more in (("NATS_PASSWORD", {"NATS_USER": "u"}), ("NATS_TOKEN", {}), ("FACILITATOR_HOTKEY_PASSWORD", {})):
        settings, notices = load(**{name: given}, **more)
        secrets = (settings.nats.password, settings.nats.token, settings.facilitator.hotkey_password)
        assert [taken] == [secret.get_secret_value() for secret in secrets if secret]
        assert [f"RELAY_{name} {told}"] * bool(told) == notices


def test_secret_of_white_space_only():
    """A password that is only a line end counts as unset, so its user lacks one."""
    with pytest.raises(ConfigurationError) as caught:
        load(NATS_USER="u", NATS_PASSWORD="\n")
    assert "RELAY_NATS_PASSWORD" == caught.value.variable


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'pa${HOME}word'", "pa${HOME}word"),
        (r"'pa\\s\ns\"'", r"pa\\s\ns\""),
        (r"'it\'s'", "it's"),
        ("'a#b' # a comment with it's own quote", "a#b"),
        ("pa$word$$", "pa$word$$"),
        ("a#b # a comment", "a#b"),
        ('"pa${FIRST}word"', "pa1word"),
        ("pa${FIRST}word${OTHER}", "pa1word2"),
        ("${NONE:-otherwise}", "otherwise"),
        (r'"a\"b"', 'a"b'),
    ],
)
def test_value_in_the_file(env_file, written, read):
    """Values are literal in single quotes; elsewhere ${NAME} stands for a variable."""
    path = env_file(f"FIRST=1\n\nexport RELAY_NATS_TOKEN={written}\n")
    assert read == load_settings({"OTHER": "2", "HOME": "/h"}, path).nats.token.get_secret_value()


@pytest.mark.parametrize(
    "line",
    [
        "RELAY_NATS_PASSWORD: hidden",
        "RELAY_NATS_PASSWORD hidden",
        "RELAY_NATS_PASSWORD",
        "RELAY_NATS_PASSWORD='hidden",
        'RELAY_NATS_PASSWORD="hidden',
        "RELAY_NATS_PASSWORD='hidden' hidden",
        "OTHER='hidden\nRELAY_LANES=8",
        "RELAY_NATS_PASSWORD='hidden\n'",
        "RELAY_NATS_PASSWORD=${HIDDEN}hidden",
        "= hidden",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_that_cannot_be_read(env_file, line, end):
    """A line that cannot be read is an error that names the file and the line, and does not quote it."""
    path = env_file((end or "\n").join(("RELAY_LANES=8", "", "# comment", line + end)))
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, path)
    assert str(caught.value).startswith(f"{path}, line 4: ")
    assert "hidden" not in str(caught.value)


def test_lines_that_are_fine(env_file):
    """Blank lines, comments, lines of other programs and a byte order mark are no errors."""
    path = env_file(
        "\ufeffRELAY_LANES=8\r\n\r\n  # RELAY_LANES: 9\r\nCOMPOSE_PROJECT\r\nOTHER=${NONE}\r\nRELAY_NATS_TOKEN=\r\n"
    )
    settings = load_settings({}, path)
    assert (8, None) == (settings.delivery.lanes, settings.nats.token)


def test_file_that_cannot_be_read(tmp_path, env_file):
    """A folder in place of the file, or a file that is not UTF-8, is named."""
    for path in (tmp_path, env_file(b"RELAY_LANES=8\xff\n"), env_file("RELAY_LANES=8\n".encode("utf-16"))):
        with pytest.raises(ConfigurationError, match="it cannot be read") as caught:
            load_settings({}, path)
        assert str(path) == caught.value.variable
