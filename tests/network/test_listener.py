"""Listening on a host and port."""

import errno
import socket
import subprocess
import sys

import pytest

from relay.contract.errors import ConfigurationError
from relay.network.listener import listen

HOST = "127.0.0.1"


def test_port_in_use():
    """A port that is in use is refused by name, before anything is served."""
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            listen(HOST, port, prefix="RELAY_HTTP")
    assert (caught.value.variable, caught.value.value) == ("RELAY_HTTP_PORT", str(port))
    expected = (
        f"RELAY_HTTP_PORT='{port}' is not allowed: Address already in use on 127.0.0.1; "
        "give a port that is free and open to this user, or 0 for any free one"
    )
    assert str(caught.value) == expected


@pytest.mark.parametrize("host", ["a..b", "relay.invalid", "192.0.2.1"])
def test_host_of_another_machine(host):
    """A host that is malformed, unknown, or not of this machine is refused by name."""
    with pytest.raises(ConfigurationError) as caught:
        listen(host, 0, prefix="RELAY_HTTP")
    assert (caught.value.variable, caught.value.value) == ("RELAY_HTTP_HOST", host)
    assert caught.value.allowed.split("; ")[-1] == "give a host name or address of this machine"


@pytest.fixture
def both_families(monkeypatch):
    """Each host has addresses of both families, one of them twice."""
    look_up = socket.getaddrinfo
    both = ("::1", "127.0.0.1", "127.0.0.1")
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *more, **options: [look_up(a, *more, **options)[0] for a in both]
    )


@pytest.mark.usefixtures("both_families")
def test_host_with_addresses_of_both_families():
    """All addresses of a host are listened on, at the same port."""
    listeners = listen("both.example", 0, prefix="RELAY_HTTP")
    addresses = [listener.getsockname()[:2] for listener in listeners]
    for listener in listeners:
        listener.close()
    assert ["::1", "127.0.0.1"] == [host for host, _ in addresses]
    assert 1 == len({port for _, port in addresses})


@pytest.mark.usefixtures("both_families")
def test_free_port_that_another_process_has_on_one_address(monkeypatch):
    """A port that is free on the first address only is not the one that is taken."""
    create, others = socket.create_server, []

    def while_others_listen(address, *, family):
        listener = create(address, family=family)
        if not others:
            others.append(create(("127.0.0.1", listener.getsockname()[1])))
        return listener

    monkeypatch.setattr(socket, "create_server", while_others_listen)
    listeners = listen("both.example", 0, prefix="RELAY_HTTP")
    ports = {listener.getsockname()[1] for listener in listeners}
    taken = others[0].getsockname()[1]
    for each in (*listeners, *others):
        each.close()
    assert 2 == len(listeners)
    assert 1 == len(ports - {taken}) == len(ports)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_all_interfaces(host):
    """The address of all interfaces of one family serves both, in a network namespace that nobody else reaches."""
    script = f"""
import socket
from relay.network.listener import listen
listeners = listen({host!r}, 0, prefix="RELAY_HTTP")
for address in ("127.0.0.1", "::1"):
    socket.create_connection((address, listeners[0].getsockname()[1])).close()
"""
    command = ["unshare", "-rn", "sh", "-c", f"ip link set lo up && {sys.executable} -"]
    done = subprocess.run(command, input=script, check=False, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_system_without_one_family(monkeypatch, host):
    """A family that the system does not have is left out."""
    create = socket.create_server

    def only_ipv4(address, *, family):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6 here")
        return create(("127.0.0.1", address[1]), family=family)

    monkeypatch.setattr(socket, "create_server", only_ipv4)
    listeners = listen(host, 0, prefix="RELAY_HTTP")
    families = [listener.family for listener in listeners]
    for listener in listeners:
        listener.close()
    assert [socket.AF_INET] == families
