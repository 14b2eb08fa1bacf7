"""Without the extra `server`."""

from process_kit import in_a_program

from relay.__main__ import main
from relay.nats import credentials


def test_command_without_the_server_parts():
    """The command ends with 2 and one line that says what to install."""
    script = f"""
import sys
sys.modules["typer"] = None
sys.argv = ["relay", "serve"]
from {main.__module__} import main
try:
    main()
except SystemExit as end:
    print(end.code)
"""
    line = "relay: the module typer is missing: only what publishers need is installed; to run the command, "
    assert [line + "pip install 'job-status-relay[server]'", "2"] == sorted(in_a_program(script), reverse=True)


def test_credentials_without_nkeys():
    """A publisher with a credentials file says which package is missing, and that before it connects."""
    script = f"""
import importlib.util
importlib.util.find_spec = lambda _: None
from {credentials.__name__} import connect_options
from relay.contract.settings import NatsSettings
for setting in ("creds", "nkey_file"):
    try:
        connect_options(NatsSettings.model_validate({{"urls": "nats://h", setting: {__file__!r}}}))
    except Exception as error:
        print(error)
"""
    says = in_a_program(script)
    assert ["RELAY_NATS_CREDS=", "RELAY_NATS_NKEY_FILE="] == [line[: line.index("'")] for line in says]
    assert all(line.endswith("pip install 'job-status-relay[nkeys]'") for line in says)
