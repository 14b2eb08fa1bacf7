import re
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from relay.contract.console_settings import ConsoleSettings
from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError
from relay.contract.settings import (
    DeliverySettings,
    FacilitatorSettings,
    HttpSettings,
    LogSettings,
    NatsSettings,
    Settings,
    TracingSettings,
)
from relay.contract.settings_table import settings_table

CONTRACT = """
    NATS_URL NATS_CREDS NATS_USER NATS_PASSWORD NATS_TOKEN NATS_CA_FILE NATS_CERT_FILE NATS_KEY_FILE
    NATS_NKEY_FILE NATS_INBOX_PREFIX NATS_DOMAIN NATS_API_PREFIX NATS_TLS_FIRST
    FACILITATOR_URL FACILITATOR_AUTH FACILITATOR_HOTKEY_FILE FACILITATOR_HOTKEY_PASSWORD FACILITATOR_WINDOW
    FACILITATOR_CONNECTIONS FACILITATOR_REPLY_TIMEOUT FACILITATOR_HEADERS FACILITATOR_PROXY
    LANES MAX_ATTEMPTS MAX_DELIVER ACK_WAIT
    LEASE_TTL BACKOFF_INITIAL BACKOFF_MAX REPLICAS RECEIPTS OTHER_SENDERS MEMORY_MB HTTP_HOST HTTP_PORT LOG_LEVEL
    LOG_FORMAT TRACING STORAGE_MB
    CONSOLE_HOST CONSOLE_PORT CONSOLE_PASSWORD CONSOLE_USER_HEADER CONSOLE_PROXIES CONSOLE_PATH_PREFIX
    CONSOLE_DASHBOARD_URL
"""


def load(env_file=None, **variables):
    return load_settings({f"RELAY_{name}": value for name, value in variables.items()}, env_file)


def refusal(env_file=None, **variables):
    """The text of the error for these variables."""
    with pytest.raises(ConfigurationError) as caught:
        load(env_file, **variables)
    return caught.value


def test_the_table_has_exactly_the_variables_of_the_contract():
    """Each variable that users may set is in the table once, with its range and its meaning in words."""
    expected = sorted(f"RELAY_{name}" for name in CONTRACT.split())
    assert expected == sorted(row.variable for row in settings_table())
    assert all(row.allowed and row.description.endswith(".") for row in settings_table())


def test_defaults_need_no_environment():
    """Without any variable, every group has its defaults."""
    assert Settings() == load()


def test_the_defaults_of_the_table_are_the_defaults():
    """Setting every variable to the default that the table prints changes nothing."""
    printed = {row.variable: row.default for row in settings_table()}
    assert Settings() == load_settings(printed, None)


def test_every_variable_reaches_its_field(tmp_path):
    """Values from the environment arrive in their groups, converted."""
    file = tmp_path / "file"
    file.touch()
    files = dict.fromkeys(
        ("NATS_CREDS", "NATS_NKEY_FILE", "NATS_CA_FILE", "NATS_CERT_FILE", "NATS_KEY_FILE"), str(file)
    )
    texts = (
        "NATS_URL=nats://a:1, tls://b NATS_USER=u NATS_PASSWORD=p NATS_TOKEN=t NATS_INBOX_PREFIX=_I.x"
        " NATS_DOMAIN=d NATS_API_PREFIX=a.b NATS_TLS_FIRST=true"
        " FACILITATOR_URL=wss://f/ws/v0/ FACILITATOR_AUTH=None FACILITATOR_HOTKEY_FILE=~/h"
        " FACILITATOR_HOTKEY_PASSWORD=q FACILITATOR_WINDOW=8 FACILITATOR_CONNECTIONS=2"
        " FACILITATOR_REPLY_TIMEOUT=1.5 FACILITATOR_HEADERS=A: b FACILITATOR_PROXY=http://p LANES=7 MAX_ATTEMPTS=3"
        " MAX_DELIVER=9 ACK_WAIT=0.5 LEASE_TTL=2 BACKOFF_INITIAL=1 BACKOFF_MAX=2 REPLICAS=3 RECEIPTS=true"
        " OTHER_SENDERS=true MEMORY_MB=64 STORAGE_MB=256 HTTP_HOST=::1 HTTP_PORT=0 LOG_LEVEL=WARNING LOG_FORMAT=console"
        " TRACING=Otel CONSOLE_HOST=::1 CONSOLE_PORT=0 CONSOLE_PASSWORD=12345678 CONSOLE_USER_HEADER=X-User"
        " CONSOLE_PROXIES=10.0.0.1, ::1 CONSOLE_PATH_PREFIX=/relay CONSOLE_DASHBOARD_URL=https://g/d"
    )
    variables = dict(re.findall(r"([A-Z_]+)=(.*?)(?= [A-Z_]+=|$)", texts)) | files
    assert set(CONTRACT.split()) == set(variables)
    sign_in = {name: variables.pop(f"NATS_{name}") for name in ("NKEY_FILE", "USER", "PASSWORD")}  # one way at a time
    assert file == load(NATS_NKEY_FILE=sign_in["NKEY_FILE"]).nats.nkey_file
    with_password = load(NATS_USER=sign_in["USER"], NATS_PASSWORD=sign_in["PASSWORD"]).nats
    assert ("u", SecretStr("p")) == (with_password.user, with_password.password)
    assert variables.pop("NATS_API_PREFIX") == load(NATS_API_PREFIX="a.b").nats.api  # or a domain
    assert load(**variables) == Settings(
        nats=NatsSettings(
            urls=("nats://a:1", "tls://b"),
            creds=file,
            token=SecretStr("t"),
            ca_file=file,
            cert_file=file,
            key_file=file,
            inbox_prefix="_I.x",
            domain="d",
            tls_first=True,
        ),
        facilitator=FacilitatorSettings(
            url="wss://f/ws/v0/",
            auth="none",
            hotkey_file=Path("~/h"),
            hotkey_password=SecretStr("q"),
            window=8,
            connections=2,
            reply_timeout_s=1.5,
            headers=SecretStr("A: b"),
            proxy=SecretStr("http://p"),
        ),
        delivery=DeliverySettings(
            lanes=7,
            max_attempts=3,
            max_deliver=9,
            ack_wait_s=0.5,
            lease_ttl_s=2,
            backoff_initial_s=1,
            backoff_max_s=2,
            replicas=3,
            storage_mib=256,
            receipts=True,
            other_senders=True,
            memory_mib=64,
        ),
        http=HttpSettings(host="::1", port=0),
        console=ConsoleSettings(
            host="::1",
            port=0,
            password=SecretStr("12345678"),
            user_header="X-User",
            proxies=("10.0.0.1", "::1"),
            path_prefix="/relay",
            dashboard_url="https://g/d",
        ),
        log=LogSettings(level="warning", format="console"),
        tracing=TracingSettings(backend="otel"),
    )


RANGES = [
    (row, *re.search(r"from ([\d.]+) to ([\d.]+)", row.allowed).groups())
    for row in settings_table()
    if " to " in row.allowed and re.search(r"from [\d.]+ to", row.allowed)
]


@pytest.mark.parametrize(("row", "low", "high"), RANGES, ids=[row.variable for row, _, _ in RANGES])
def test_the_range_in_words_is_the_range_that_is_taken(row, low, high):
    """Both limits in the table are accepted, and the next values beyond them are refused with the same words."""
    wide = {"RELAY_BACKOFF_MAX": "3600", "RELAY_BACKOFF_INITIAL": "0.05"}
    for inside in (low, high):
        load_settings(wide | {row.variable: inside}, None)
    just_outside = (str(float(low) - 0.01), str(float(high) + 1), f"{int(float(high)) + 1}")
    for outside in (*just_outside, "-1", "nan", "inf", "many"):
        with pytest.raises(ConfigurationError) as caught:
            load_settings(wide | {row.variable: outside}, None)
        assert (row.variable, outside, row.allowed) == (caught.value.variable, caught.value.value, caught.value.allowed)


BAD_VALUES = {
    "NATS_URL": "127.0.0.1:4222 http://127.0.0.1 nats:// nats://a:port nats://a,,nats://b",
    "NATS_CREDS": "does-not-exist.creds",
    "NATS_CA_FILE": ".",
    "FACILITATOR_URL": "https://f/ws/v0/ wss:///ws/v0/ wss://f wss://f/ wss://f/ws/v0 wss://f:0/ws/v0/ wss://f/ws/v0/#x",
    "FACILITATOR_AUTH": "password",
    "LANES": "4.5",
    "REPLICAS": "2 three",
    "LOG_LEVEL": "loud",
    "LOG_FORMAT": "xml",
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD_VALUES for value in BAD_VALUES[name].split()]
)
def test_a_bad_value_is_refused_by_name(name, value):
    """The error names the full variable, the given value, and the allowed values from the table."""
    allowed = {row.variable: row.allowed for row in settings_table()}
    error = refusal(**{name: value})
    assert (f"RELAY_{name}", value, allowed[f"RELAY_{name}"]) == (error.variable, error.value, error.allowed)


@pytest.mark.parametrize(
    "variables",
    [
        {"NATS_URL": "nats://relay:hidden@a:port"},
        {"NATS_URL": "relay:hidden@a:4222"},
        {"NATS_URL": "nats://ok, nats://hid/den:hidden@b:x"},
        {"FACILITATOR_URL": "wss://relay:hidden@f"},
        {"NATS_PASSWORD": "hidden"},  # without its user
        {"NATS_PASWORD": "hidden"},
    ],
)
def test_no_error_shows_a_secret(variables):
    """Passwords do not appear in errors: from their own variables, in addresses, under misspelled names."""
    assert "hidden" not in str(refusal(**variables))


@pytest.mark.parametrize("sign_in", [{"NATS_USER": "u", "NATS_PASSWORD": "hidden"}, {"NATS_TOKEN": "hidden"}])
def test_no_secret_is_shown_by_the_settings(sign_in):
    """Printing the settings shows no password or token."""
    assert "hidden" not in repr(load(**sign_in, FACILITATOR_HOTKEY_PASSWORD="hidden"))


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"NATS_USER": "u"}, "NATS_PASSWORD"),
        ({"NATS_PASSWORD": "p"}, "NATS_USER"),
        ({"NATS_CERT_FILE": __file__}, "NATS_KEY_FILE"),
        ({"NATS_KEY_FILE": __file__}, "NATS_CERT_FILE"),
    ],
)
def test_half_a_pair_is_refused(variables, missing):
    """If one of a pair is missing (user and password, certificate and key), the error names it."""
    assert f"RELAY_{missing}" == refusal(**variables).variable


USER = {"NATS_USER": "u", "NATS_PASSWORD": "p"}


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        (USER | {"NATS_CREDS": __file__}, "NATS_USER"),
        (USER | {"NATS_NKEY_FILE": __file__}, "NATS_USER"),
        (USER | {"NATS_TOKEN": "t"}, "NATS_TOKEN"),
        (USER | {"NATS_URL": "nats://v:q@a"}, "NATS_USER"),
        ({"NATS_URL": "nats://token@a", "NATS_TOKEN": "t"}, "NATS_TOKEN"),
        ({"NATS_URL": "nats://b,nats://v:q@a", "NATS_CREDS": __file__}, "NATS_CREDS"),
        ({"NATS_NKEY_FILE": __file__, "NATS_CREDS": __file__}, "NATS_NKEY_FILE"),
    ],
)
def test_two_ways_to_sign_in_are_refused(variables, refused):
    """Nobody has to know which of two ways to sign in would be used: the error names both."""
    error = refusal(**variables)
    assert f"RELAY_{refused}" == error.variable
    assert "says already how to sign in at NATS" in error.allowed


@pytest.mark.parametrize("name", ["NATS_CREDS", "NATS_NKEY_FILE"])
def test_a_token_may_come_with_a_signature(name):
    """A token beside credentials or an NKey is for an auth callout of the server."""
    assert load(**{name: __file__, "NATS_TOKEN": "t"}).nats.token == SecretStr("t")


@pytest.mark.parametrize(
    "variables",
    [
        {"NATS_URL": "ws://a,wss://b"},
        {"NATS_URL": "ws://a", "NATS_CA_FILE": __file__},
        {"NATS_URL": "nats://a,wss://b"},
        {"NATS_URL": "tls://a,wss://b"},
    ],
)
def test_addresses_that_do_not_go_together_are_refused(variables):
    """No address may undo the TLS that another setting asks for, and WebSockets are not mixed with TCP."""
    assert "RELAY_NATS_URL" == refusal(**variables).variable


def test_the_longest_backoff_is_not_below_the_first():
    """BACKOFF_MAX must not be smaller than BACKOFF_INITIAL."""
    error = refusal(BACKOFF_INITIAL="2", BACKOFF_MAX="1")
    assert ("RELAY_BACKOFF_MAX", "1") == (error.variable, error.value)


@pytest.mark.parametrize(
    ("name", "nearest"), [("ACKWAIT", "ACK_WAIT"), ("NATS_URLS", "NATS_URL"), ("X", "LANES"), ("LANE", "LANES")]
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(name, nearest):
    """A misspelled variable is an error that suggests the right name."""
    error = refusal(**{name: "1"})
    assert f"RELAY_{name}" == error.variable
    assert f"there is no such setting; the nearest name is RELAY_{nearest}" == error.allowed


def test_what_kubernetes_adds_beside_a_service_named_relay_is_ignored():
    """The variables that service links put into every pod are not taken for misspelled settings."""
    links = dict.fromkeys(("PORT", "PORT_8080_TCP"), "tcp://10.0.0.1:8080")
    links |= dict.fromkeys(("SERVICE_HOST", "METRICS_SERVICE_HOST", "PORT_8080_TCP_ADDR"), "10.0.0.1")
    links |= dict.fromkeys(("SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8080_TCP_PORT"), "8080")
    assert Settings() == load(**links, PORT_8080_TCP_PROTO="tcp")


def test_variables_of_others_are_none_of_our_business():
    """Only names with the prefix are read."""
    assert Settings() == load_settings({"LANES": "9", "RELAYLANES": "9", "PATH": "/bin"}, None)


def test_the_environment_wins_over_the_file(tmp_path):
    """A `.env` file gives values that the environment does not; other names in it are ignored."""
    file = tmp_path / ".env"
    file.write_text(
        '# lanes\nRELAY_LANES=8\nexport RELAY_REPLICAS=3\nRELAY_LOG_LEVEL="debug"\nOTHER=1\nRELAY_NATS_TOKEN=\n'
    )
    settings = load(file, REPLICAS="5")
    expected = (8, 5, "debug", None)
    assert expected == (settings.delivery.lanes, settings.delivery.replicas, settings.log.level, settings.nats.token)


def test_a_bad_value_in_the_file_is_refused_like_any_other(tmp_path):
    """Values in the file are checked like those in the environment."""
    file = tmp_path / ".env"
    file.write_text("RELAY_LANES=none\n")
    assert ("RELAY_LANES", "none") == (refusal(file).variable, refusal(file).value)


def test_a_missing_file_is_no_error_and_an_unreadable_one_is(tmp_path):
    """A missing `.env` file is no error; one that is not text is reported with its name."""
    assert Settings() == load(tmp_path / ".env")
    file = tmp_path / "binary"
    file.write_bytes(b"RELAY_LANES=\xff\xfe")
    assert str(file) == refusal(file).variable


def test_the_process_environment_is_the_default(monkeypatch, tmp_path):
    """Without arguments, settings are read from the process's environment and from `.env` in its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("RELAY_REPLICAS=3\n")
    monkeypatch.setenv("RELAY_LANES", "6")
    settings = load_settings()
    expected = (6, 3)
    assert expected == (settings.delivery.lanes, settings.delivery.replicas)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({}, "FACILITATOR_URL"),
        ({"FACILITATOR_AUTH": "none"}, "FACILITATOR_URL"),
        ({"FACILITATOR_URL": "ws://f/ws/v0/"}, "FACILITATOR_HOTKEY_FILE"),
    ],
)
def test_what_the_facilitator_needs_is_asked_for_only_by_those_who_need_it(variables, missing):
    """Settings load without a Facilitator; a command that requires it gets an error that names what is missing."""
    settings = load(**variables)
    with pytest.raises(ConfigurationError) as caught:
        settings.require_facilitator()
    assert f"RELAY_{missing}" == caught.value.variable


@pytest.mark.parametrize("more", [{"FACILITATOR_AUTH": "none"}, {"FACILITATOR_HOTKEY_FILE": "hotkey"}])
def test_enough_for_the_facilitator_is_returned_as_it_is(more):
    """With a URL and a way to authenticate, the same settings are returned."""
    settings = load(FACILITATOR_URL="ws://f/ws/v0/", **more)
    assert settings is settings.require_facilitator()


def test_settings_do_not_change_after_the_start():
    """Groups are frozen."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().delivery.lanes = 2


@pytest.mark.parametrize("prefix", ["a..b", "a.", ".a", "a b", "a.*", "a.>", "$KV.x", "$JS.API.x", "\u00e4"])
def test_api_prefix_that_is_none(prefix):
    """A prefix that no subject can begin with, or that would lead back to the API at hand, is refused."""
    assert "RELAY_NATS_API_PREFIX" == refusal(NATS_API_PREFIX=prefix).variable


def test_domain_or_prefix():
    """A domain has its prefix; a domain and a prefix together are refused."""
    assert ("$JS.API", "$JS.hub.API", "a.b") == (
        load().nats.api,
        load(NATS_DOMAIN="hub").nats.api,
        load(NATS_API_PREFIX="a.b").nats.api,
    )
    assert "RELAY_NATS_DOMAIN" == refusal(NATS_DOMAIN="hub.x").variable
    assert "RELAY_NATS_API_PREFIX" == refusal(NATS_DOMAIN="hub", NATS_API_PREFIX="a.b").variable


@pytest.mark.parametrize("url", ["ws://a", "wss://a"])
def test_tls_first_over_websocket(url):
    """WebSockets have no such order, so the setting is refused with them."""
    assert "RELAY_NATS_TLS_FIRST" == refusal(NATS_URL=url, NATS_TLS_FIRST="true").variable


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, None),
        ({"CONSOLE_HOST": "localhost"}, None),
        ({"CONSOLE_HOST": "::1"}, None),
        ({"CONSOLE_HOST": "127.8.8.8"}, None),
        ({"CONSOLE_HOST": "0.0.0.0"}, "RELAY_CONSOLE_HOST"),
        ({"CONSOLE_HOST": "::"}, "RELAY_CONSOLE_HOST"),
        ({"CONSOLE_HOST": "console.example"}, "RELAY_CONSOLE_HOST"),
        ({"CONSOLE_HOST": "0.0.0.0", "CONSOLE_PASSWORD": "correct horse"}, None),
        ({"CONSOLE_HOST": "::", "CONSOLE_USER_HEADER": "X-User", "CONSOLE_PROXIES": "10.0.0.0/8, fd00::1"}, None),
        ({"CONSOLE_USER_HEADER": "X-User"}, "RELAY_CONSOLE_PROXIES"),
        ({"CONSOLE_PROXIES": "10.0.0.1"}, "RELAY_CONSOLE_USER_HEADER"),
    ],
)
def test_console_listens_elsewhere_only_if_guarded(variables, problem):
    """The console may listen on loopback; elsewhere only with a password, or with a proxy that signs people in."""
    settings = load(**variables)
    if problem is None:
        assert settings == settings.require_guarded_console()
    else:
        with pytest.raises(ConfigurationError, match=f"^{problem}="):
            settings.require_guarded_console()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONSOLE_PASSWORD", "short"),
        ("CONSOLE_PROXIES", "10.0.0.1/8"),
        ("CONSOLE_PROXIES", "proxy.example"),
        ("CONSOLE_USER_HEADER", "X User"),
        ("CONSOLE_PATH_PREFIX", "relay"),
        ("CONSOLE_PATH_PREFIX", "/relay/"),
        ("CONSOLE_PATH_PREFIX", '/"><script>'),
        ("CONSOLE_DASHBOARD_URL", "javascript:alert(1)"),
        ("CONSOLE_DASHBOARD_URL", "https://"),
    ],
)
def test_console_values(name, value):
    """Values that the console cannot use, or that could do harm in a page, are refused."""
    assert f"RELAY_{name}" in str(refusal(**{name: value}))
