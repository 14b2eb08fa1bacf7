"""Every setting: its field, type, default, environment variable, what is allowed and what it is for.

Settings are frozen groups of values. Constructing a group reads nothing from outside: environment.py fills the groups
from environment variables, settings_table.py lists them for people.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from relay.contract.addresses import existing_file, facilitator_address, nats_address, parse_proxy
from relay.contract.console_settings import ConsoleSettings
from relay.contract.errors import ConfigurationError
from relay.contract.settings_group import WHOLE, Secret, SettingsGroup, Variable, split_at_commas
from relay.contract.subjects import API, domain_api
from relay.contract.text import redact_url
from relay.contract.upgrade_headers import ALLOWED as UPGRADE_HEADERS
from relay.contract.upgrade_headers import parse_upgrade_headers

_ENCRYPTED_SCHEMES: Final = frozenset({"tls", "wss"})


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) else value


def _api_prefix(prefix: str) -> str:
    if prefix.startswith(f"{API}.") or (prefix.startswith("$") and not prefix.startswith("$JS.")):
        raise ValueError(prefix)
    return prefix


def _upgrade_headers(headers: SecretStr) -> SecretStr:
    parse_upgrade_headers(headers.get_secret_value())
    return headers


def _proxy_address(proxy: SecretStr) -> SecretStr:
    parse_proxy(proxy.get_secret_value())
    return proxy


_Seconds = Annotated[float, Field(ge=0.05, le=3600)]
_File = Annotated[Path, AfterValidator(existing_file)] | None
_Proxy = Annotated[SecretStr, AfterValidator(_proxy_address)] | None
_Headers = Annotated[SecretStr, AfterValidator(_upgrade_headers)] | None

_SECONDS: Final = "seconds, from 0.05 to 3600"
_LEASE_SECONDS: Final = "seconds, from 0.5 to 3600"
_TEXT: Final = "any text, together with"
_FILE: Final = "the path of a file that exists"
_HOTKEY_FILE: Final = "the path of a bittensor wallet hotkey file, required while RELAY_FACILITATOR_AUTH is hotkey"
_NATS_URLS: Final = "addresses nats://host:port (or tls://, ws://, wss://), separated by commas"
_TLS_FIRST: Final = "true or false; true only with addresses nats:// and tls://"
_DOMAIN: Final = "letters, digits, - and _; not together with RELAY_NATS_API_PREFIX"
_API_PREFIX: Final = (
    "parts separated by dots, without blanks, * and >, such as JS.shared.API; not together with RELAY_NATS_DOMAIN"
)
_INBOX_PREFIX: Final = "letters, digits, - and _, in parts separated by dots"
_FACILITATOR_URL: Final = (
    "a ws:// or wss:// address with path and trailing slash, such as wss://facilitator.example/ws/v0/"
    " (without the slash the Facilitator answers HTTP 500)"
)
PROXY: Final = "http://host:port or https://host:port of an HTTP proxy, with user:password@ before the host if it asks"
_WINDOW: Final = f"{WHOLE} 1 to 32 (with more the Facilitator stops reading)"
_MAX_DELIVER: Final = f"{WHOLE} 2 to 1000000 (with 1, each restart would dead-letter what was not settled)"
_MEMORY: Final = f"MiB (1,048,576 bytes), {WHOLE} 64 to 1048576"
_STORAGE: Final = f"MiB (1,048,576 bytes), {WHOLE} 256 to 1073741824"
_BACKOFF_MAX: Final = f"{_SECONDS}, and not below RELAY_BACKOFF_INITIAL"


def _scheme(url: str) -> str:
    return urlsplit(url).scheme


class NatsSettings(SettingsGroup):
    """Where NATS is and how to sign in there."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, tuple(map(redact_url, value)) if name == "urls" else value

    urls: Annotated[
        tuple[Annotated[str, AfterValidator(nats_address)], ...],
        BeforeValidator(split_at_commas),
        Field(min_length=1),
        Variable("RELAY_NATS_URL", _NATS_URLS, "The servers of one NATS cluster."),
    ] = ("nats://127.0.0.1:4222",)
    creds: Annotated[_File, Variable("RELAY_NATS_CREDS", _FILE, "Credentials to sign in at NATS (JWT and seed).")] = (
        None
    )
    nkey_file: Annotated[
        _File, Variable("RELAY_NATS_NKEY_FILE", _FILE, "NKey to sign in at NATS with, where no JWT is used (seed).")
    ] = None
    user: Annotated[str | None, Variable("RELAY_NATS_USER", f"{_TEXT} RELAY_NATS_PASSWORD", "User name at NATS.")] = (
        None
    )
    password: Annotated[Secret, Variable("RELAY_NATS_PASSWORD", f"{_TEXT} RELAY_NATS_USER", "Password at NATS.")] = None
    token: Annotated[Secret, Variable("RELAY_NATS_TOKEN", "any text", "Token to sign in at NATS.")] = None
    ca_file: Annotated[_File, Variable("RELAY_NATS_CA_FILE", _FILE, "Authorities that may vouch for NATS (PEM).")] = (
        None
    )
    cert_file: Annotated[
        _File,
        Variable("RELAY_NATS_CERT_FILE", f"{_FILE}, with RELAY_NATS_KEY_FILE", "The relay's own certificate (PEM)."),
    ] = None
    key_file: Annotated[
        _File,
        Variable(
            "RELAY_NATS_KEY_FILE", f"{_FILE}, with RELAY_NATS_CERT_FILE", "Private key of that certificate (PEM)."
        ),
    ] = None
    tls_first: Annotated[
        bool,
        Variable(
            "RELAY_NATS_TLS_FIRST",
            _TLS_FIRST,
            "Whether NATS expects TLS before it says anything (`handshake_first: true` in its configuration).",
        ),
    ] = False
    inbox_prefix: Annotated[
        str,
        Field(pattern=r"^[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*$"),
        Variable("RELAY_NATS_INBOX_PREFIX", _INBOX_PREFIX, "Where answers arrive, if not everybody may listen there."),
    ] = "_INBOX"
    domain: Annotated[
        str | None,
        Field(pattern=r"^[0-9A-Za-z_-]+$"),
        Variable("RELAY_NATS_DOMAIN", _DOMAIN, "The JetStream domain of the streams, if NATS is a leaf node of it."),
    ] = None
    api_prefix: Annotated[
        str | None,
        Field(pattern=r"^[!-)+-\-/-=?-~]+(\.[!-)+-\-/-=?-~]+)*$"),
        AfterValidator(_api_prefix),
        Variable("RELAY_NATS_API_PREFIX", _API_PREFIX, "Where another account's JetStream API is imported to."),
    ] = None

    @property
    def api(self) -> str:
        """The prefix of JetStream's API."""
        return domain_api(self.domain) if self.domain is not None else self.api_prefix or API

    @property
    def wants_tls(self) -> bool:
        """Whether an address, a CA file, a certificate or `tls_first` asks for TLS. Then no server may lack it."""
        return (
            self.tls_first
            or not _ENCRYPTED_SCHEMES.isdisjoint(map(_scheme, self.urls))
            or bool(self.ca_file or self.cert_file)
        )

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses to connect to: `urls`, with `tls://` for `nats://` if TLS is wanted."""
        if not self.wants_tls:
            return self.urls
        return tuple(f"tls{url.removeprefix('nats')}" if _scheme(url) == "nats" else url for url in self.urls)


class FacilitatorSettings(SettingsGroup):
    """Where the Facilitator is, how to sign in there, and how much to send at a time.

    `url` is empty while it is not set: commands that do not reach the Facilitator need none.
    """

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redact_url(value) if name == "url" and value else value

    url: Annotated[
        str,
        AfterValidator(facilitator_address),
        Variable("RELAY_FACILITATOR_URL", _FACILITATOR_URL, "The Facilitator's WebSocket endpoint."),
    ] = ""
    auth: Annotated[
        Literal["hotkey", "none"],
        BeforeValidator(_lower),
        Variable("RELAY_FACILITATOR_AUTH", "hotkey or none", "How to sign in; none is for one behind a trusted proxy."),
    ] = "hotkey"
    hotkey_file: Annotated[
        Path | None, Variable("RELAY_FACILITATOR_HOTKEY_FILE", _HOTKEY_FILE, "The validator's hotkey.")
    ] = None
    hotkey_password: Annotated[
        Secret, Variable("RELAY_FACILITATOR_HOTKEY_PASSWORD", "any text", "Password of an encrypted hotkey file.")
    ] = None
    window: Annotated[
        int,
        Field(ge=1, le=32),
        Variable("RELAY_FACILITATOR_WINDOW", _WINDOW, "Unanswered updates per connection."),
    ] = 32
    connections: Annotated[
        int,
        Field(ge=1, le=16),
        Variable("RELAY_FACILITATOR_CONNECTIONS", f"{WHOLE} 1 to 16", "Connections to the Facilitator per worker."),
    ] = 1
    reply_timeout_s: Annotated[
        _Seconds,
        Variable("RELAY_FACILITATOR_REPLY_TIMEOUT", _SECONDS, "Longest wait for an answer before a reconnect."),
    ] = 60.0
    headers: Annotated[
        _Headers,
        Variable("RELAY_FACILITATOR_HEADERS", UPGRADE_HEADERS, "Further headers of the request for a WebSocket."),
    ] = None

    proxy: Annotated[
        _Proxy,
        Variable(
            "RELAY_FACILITATOR_PROXY",
            PROXY,
            "The proxy on the way to the Facilitator; if unset, HTTPS_PROXY, ALL_PROXY and NO_PROXY say.",
        ),
    ] = None

    @property
    def proxy_url(self) -> str | None:
        """`proxy`, which may hold a secret."""
        return self.proxy.get_secret_value() if self.proxy is not None else None

    @property
    def upgrade_headers(self) -> tuple[tuple[str, str], ...]:
        """Names and values of `headers`. The values may be secret."""
        return parse_upgrade_headers(self.headers.get_secret_value()) if self.headers is not None else ()


class DeliverySettings(SettingsGroup):
    """How updates are partitioned, retried and kept."""

    lanes: Annotated[
        int,
        Field(ge=1, le=256),
        Variable("RELAY_LANES", f"{WHOLE} 1 to 256", "Ordered partitions of the jobs."),
    ] = 4
    max_attempts: Annotated[
        int,
        Field(ge=1, le=1000),
        Variable(
            "RELAY_MAX_ATTEMPTS", f"{WHOLE} 1 to 1000", "Failures by an update's own fault until its dead letter."
        ),
    ] = 5
    max_deliver: Annotated[
        int,
        Field(ge=2, le=1_000_000),
        Variable(
            "RELAY_MAX_DELIVER", _MAX_DELIVER, "Deliveries until JetStream gives up: for updates that kill workers."
        ),
    ] = 50
    ack_wait_s: Annotated[
        _Seconds, Variable("RELAY_ACK_WAIT", _SECONDS, "Silence after which JetStream redelivers an update.")
    ] = 5.0
    lease_ttl_s: Annotated[
        float,
        Field(ge=0.5, le=3600),
        Variable("RELAY_LEASE_TTL", _LEASE_SECONDS, "Silence after which a worker loses its lanes."),
    ] = 5.0
    backoff_initial_s: Annotated[
        _Seconds, Variable("RELAY_BACKOFF_INITIAL", _SECONDS, "Upper bound of an update's first wait before a retry.")
    ] = 0.5
    backoff_max_s: Annotated[
        _Seconds, Variable("RELAY_BACKOFF_MAX", _BACKOFF_MAX, "Upper bound of all its waits before a retry.")
    ] = 30.0
    replicas: Annotated[
        Literal[1, 3, 5],
        BeforeValidator(_whole),
        Variable("RELAY_REPLICAS", "1, 3 or 5", "Copies of each stream in the NATS cluster; 3 in production."),
    ] = 1
    storage_mib: Annotated[
        int | None,
        Field(ge=256, le=1_073_741_824),
        Variable(
            "RELAY_STORAGE_MB",
            _STORAGE,
            "Limit of what all streams store, per copy, for NATS accounts that demand one; if unset, `max_bytes` of"
            " each stream is left as it is.",
        ),
    ] = None
    receipts: Annotated[
        bool,
        Variable("RELAY_RECEIPTS", "true or false", "Whether to publish a receipt of each settled update."),
    ] = False
    other_senders: Annotated[
        bool,
        Variable(
            "RELAY_OTHER_SENDERS",
            "true or false",
            "Whether somebody else, such as the old listener during a migration, sends updates of the same jobs to the"
            " Facilitator. Then each `job.integrity_error` counts as a duplicate, also one that nothing explains.",
        ),
    ] = False
    memory_mib: Annotated[
        int,
        Field(ge=64, le=1_048_576),
        Variable("RELAY_MEMORY_MB", _MEMORY, "Memory for updates, per worker, beyond what it needs without any."),
    ] = 256

    @property
    def followed(self) -> dict[str, float]:
        """The settings that streams and consumers follow, by variable. They should be the same everywhere."""
        return {
            "RELAY_LANES": self.lanes,
            "RELAY_REPLICAS": self.replicas,
            "RELAY_ACK_WAIT": self.ack_wait_s,
            "RELAY_MAX_DELIVER": self.max_deliver,
            "RELAY_LEASE_TTL": self.lease_ttl_s,
        }

    @property
    def storage_bytes(self) -> int | None:
        """`storage_mib` in bytes."""
        return None if self.storage_mib is None else self.storage_mib << 20

    @property
    def memory_bytes(self) -> int:
        """`memory_mib` in bytes."""
        return self.memory_mib << 20


class HttpSettings(SettingsGroup):
    """Where probes and metrics are served.

    Loopback by default, because neither asks for credentials; a container sets RELAY_HTTP_HOST=0.0.0.0.
    """

    host: Annotated[str, Variable("RELAY_HTTP_HOST", "a host name or address", "Where probes and metrics listen.")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int,
        Field(ge=0, le=65535),
        Variable("RELAY_HTTP_PORT", f"{WHOLE} 0 to 65535 (0: any free port)", "Port of probes and metrics."),
    ] = 8080


class LogSettings(SettingsGroup):
    """What is logged and how; `format` None means json unless standard error is a terminal."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(_lower),
        Variable("RELAY_LOG_LEVEL", "debug, info, warning or error", "The least severe level that is logged."),
    ] = "info"
    format: Annotated[
        Literal["json", "console"] | None,
        BeforeValidator(_lower),
        Variable(
            "RELAY_LOG_FORMAT", "json or console", "Form of log lines; if unset, console on a terminal, else json."
        ),
    ] = None


class TracingSettings(SettingsGroup):
    """Whether to make spans of updates; OpenTelemetry's own variables, `OTEL_*`, say where the spans go."""

    backend: Annotated[
        Literal["none", "otel"],
        BeforeValidator(_lower),
        Variable("RELAY_TRACING", "none or otel (with the extra otel installed)", "Whether to make spans of updates."),
    ] = "none"


class Settings(SettingsGroup):
    """All settings."""

    nats: NatsSettings = NatsSettings()
    facilitator: FacilitatorSettings = FacilitatorSettings()
    delivery: DeliverySettings = DeliverySettings()
    http: HttpSettings = HttpSettings()
    console: ConsoleSettings = ConsoleSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    def require_facilitator(self) -> Self:
        """Return these settings if they suffice to reach the Facilitator; for the commands that need it.

        Raises ConfigurationError if the URL is missing, or the hotkey file that hotkey authentication needs.
        """
        if not self.facilitator.url:
            raise ConfigurationError("RELAY_FACILITATOR_URL", "", _FACILITATOR_URL)
        if self.facilitator.auth == "hotkey" and self.facilitator.hotkey_file is None:
            raise ConfigurationError("RELAY_FACILITATOR_HOTKEY_FILE", "", _HOTKEY_FILE)
        return self

    def require_guarded_console(self) -> Self:
        """Return these settings if the console may listen where they say. Raises ConfigurationError."""
        self.console.require_guarded()
        return self
