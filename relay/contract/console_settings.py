"""The settings of `relay console`."""

import ipaddress
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field

from relay.contract.addresses import web_address
from relay.contract.errors import ConfigurationError
from relay.contract.settings_group import WHOLE, Secret, SettingsGroup, Variable, split_at_commas

_HOST: Final = (
    "an address or a host name; other than loopback only with RELAY_CONSOLE_PASSWORD, or with RELAY_CONSOLE_USER_HEADER"
    " and RELAY_CONSOLE_PROXIES"
)


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


class ConsoleSettings(SettingsGroup):
    """Where the web page of `relay console` is served, and who may see it.

    On loopback nobody is asked who he is. Any other address needs `password`, or a proxy that says who the user is.
    """

    host: Annotated[str, Variable("RELAY_CONSOLE_HOST", _HOST, "Where `relay console` listens.")] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535),
        Variable("RELAY_CONSOLE_PORT", f"{WHOLE} 0 to 65535 (0: any free port)", "Port of `relay console`."),
    ] = 8090
    password: Annotated[
        Secret,
        Field(min_length=8),
        Variable("RELAY_CONSOLE_PASSWORD", "at least 8 characters", "What `relay console` asks everybody for."),
    ] = None
    user_header: Annotated[
        str | None,
        Field(pattern=r"^[0-9A-Za-z-]+$"),
        Variable(
            "RELAY_CONSOLE_USER_HEADER",
            "the name of an HTTP header, together with RELAY_CONSOLE_PROXIES",
            "The header in which a trusted proxy names the user that it has let in; then no password is asked for.",
        ),
    ] = None
    proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...],
        BeforeValidator(split_at_commas),
        Variable(
            "RELAY_CONSOLE_PROXIES",
            "addresses or networks such as 10.1.2.0/24, separated by commas, together with RELAY_CONSOLE_USER_HEADER",
            "Where trusted proxies connect from. From elsewhere the header does not count.",
        ),
    ] = ()
    path_prefix: Annotated[
        str,
        Field(pattern=r"^(/[0-9A-Za-z._~-]+)*$"),
        Variable("RELAY_CONSOLE_PATH_PREFIX", "a path such as /relay", "The path behind which a proxy shows the page."),
    ] = ""
    dashboard_url: Annotated[
        str | None,
        AfterValidator(web_address),
        Variable("RELAY_CONSOLE_DASHBOARD_URL", "an http:// or https:// address", "The dashboard to link to."),
    ] = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches `host`."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def require_guarded(self) -> None:
        """Raises ConfigurationError if the console may not listen where these settings say."""
        if bool(self.user_header) != bool(self.proxies):
            name = "RELAY_CONSOLE_PROXIES" if self.user_header else "RELAY_CONSOLE_USER_HEADER"
            raise ConfigurationError(name, "", "RELAY_CONSOLE_USER_HEADER and RELAY_CONSOLE_PROXIES go together")
        if not (self.is_loopback or self.password or self.user_header):
            raise ConfigurationError("RELAY_CONSOLE_HOST", self.host, _HOST)
