"""The relay's exceptions. Each keeps its fields, and composes its message from them.

    RelayError
    ├── ConfigurationError      a setting is missing or wrong (exit 2)
    ├── IdentityError           the hotkey cannot be used (exit 2)
    ├── BrokerUnavailable       no nats-server answers or accepts our credentials
    │   ├── NotPermitted        our NATS account lacks the permission (the server just does not answer)
    │   └── Unanswered          the server is connected, and does not answer a request
    ├── UnsuitableServer        nats-server is too old, or runs without JetStream
    ├── NotProvisioned          streams or consumers are missing or differ
    ├── UnsafeChange            provisioning would endanger updates, so it refused
    ├── JetStreamError          the server answered a JetStream request with an error
    ├── PublishUnconfirmed      a publish got no PubAck
    └── LocalServerError        the embedded nats-server or simulator did not start

Further errors of a job runner's publish are in relay/producer/errors.py.
Every message says what happened, what it means and what to do.
"""

from collections.abc import Sequence


class RelayError(Exception):
    """The root: catch this to catch everything that the relay raises on purpose."""


class ConfigurationError(RelayError):
    """A setting is missing or has a value that is not allowed. `problem` is what is wrong with it, if that is known."""

    def __init__(self, variable: str, value: str, allowed: str, problem: str = "") -> None:
        self.variable = variable
        self.value = value
        self.allowed = allowed
        self.problem = problem
        super().__init__(f"{variable}={value!r} is not allowed: {f'{problem}; give ' if problem else ''}{allowed}")


class IdentityError(RelayError):
    """The validator's hotkey cannot be used to sign in at the Facilitator."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        self.path = path
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"hotkey file {path}: {problem}; {remedy}")


class BrokerUnavailable(RelayError):  # noqa: N818 - named for the state it reports, as in the NATS clients
    """No nats-server could be reached, or none accepted the credentials. `servers` is empty if none is connected.

    `remedy` is what to do about the cause; empty if nobody knows.
    """

    def __init__(self, servers: Sequence[str], cause: str, remedy: str = "") -> None:
        self.servers = tuple(servers)
        self.cause = cause
        self.remedy = remedy
        to = f" to {', '.join(servers)}" if servers else ""
        remedy = remedy or "check RELAY_NATS_URL and the NATS credentials"
        super().__init__(f"no NATS connection{to}: {cause}; {remedy}")


class NotPermitted(BrokerUnavailable):
    """The NATS account may not send this request, or not receive its answer; `cause` is what the server said."""

    def __str__(self) -> str:
        return (
            f"the NATS account does not permit this: {self.cause}; use credentials that may do it, or have it permitted"
        )


class Unanswered(BrokerUnavailable):
    """A server is connected, and does not answer a request; `cause` says which."""

    def __str__(self) -> str:
        at = f" at {', '.join(self.servers)}" if self.servers else ""
        return (
            f"connected to NATS{at}, but {self.cause}; if this lasts, the server is overloaded, or JetStream there has "
            "no leader or is switched off: look at its log"
        )


class UnsuitableServer(RelayError):  # noqa: N818
    """The nats-server is too old for the relay, or runs without JetStream."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}")


class NotProvisioned(RelayError):  # noqa: N818
    """Streams, consumers or the lease bucket are not as the relay needs them."""

    def __init__(self, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        super().__init__(f"not provisioned ({'; '.join(differences)}): run `relay provision`")


class UnsafeChange(RelayError):  # noqa: N818
    """Provisioning was asked for a change that could lose or reorder updates, and changed nothing."""

    def __init__(self, refusals: Sequence[str]) -> None:
        self.refusals = tuple(refusals)
        super().__init__("refused, nothing was changed: " + "; ".join(refusals))


class JetStreamError(RelayError):
    """The server answered a JetStream request with an error.

    `err_code` tells errors apart, see err_codes.py; the text may change between server versions. `remedy` is what to
    do; empty if nobody knows.
    """

    def __init__(self, request: str, code: int, err_code: int, description: str, remedy: str = "") -> None:
        self.request = request
        self.code = code
        self.err_code = err_code
        self.description = description
        self.remedy = remedy
        super().__init__(f"{request}: {description} (err_code {err_code})" + (f"; {remedy}" if remedy else ""))


class PublishUnconfirmed(RelayError):  # noqa: N818
    """A publish was not confirmed by a PubAck: the message may or may not be stored. Publish it again."""

    def __init__(self, subject: str, cause: str) -> None:
        self.subject = subject
        self.cause = cause
        super().__init__(f"publish on {subject} was not confirmed: {cause}")


class LocalServerError(RelayError):
    """The embedded nats-server did not start or stopped too early."""

    def __init__(self, problem: str, log_tail: str = "") -> None:
        self.problem = problem
        self.log_tail = log_tail
        super().__init__(problem + (f"; its last words:\n{log_tail}" if log_tail else ""))
