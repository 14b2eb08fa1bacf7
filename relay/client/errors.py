"""Why there is no answer to a question about a job, and no job request."""

from typing import Final

from relay.contract.errors import RelayError
from relay.contract.text import escape


class QueryFailed(RelayError):  # noqa: N818 - named for what happened, as its siblings
    """There is no answer, or the answer is an error. `problem` says why; it is safe to show on a terminal."""

    def __init__(self, problem: str) -> None:
        self.problem = escape(problem)
        super().__init__(self.problem)


class NoRelayRunning(QueryFailed):
    """Nobody answers: no relay runs on this NATS, or the user may not ask."""


class NoAnswer(QueryFailed):
    """NATS is away, or no answer came in time. Ask again."""


class InvalidQuery(QueryFailed):
    """400: the job is not a UUID, or the relay cannot read the request."""


class UnknownJob(QueryFailed):
    """404: no update of this job is stored."""


class TooManyQueries(QueryFailed):
    """429: too many requests are under way in the worker that was asked. Ask again, fewer at a time."""


class RelayFault(QueryFailed):
    """500: a bug of the relay; its log has the traceback."""


class AnswerUnavailable(QueryFailed):
    """503: the relay got no answer from NATS, or not in time. Ask again."""


class WaitTimedOut(QueryFailed):
    """What was waited for did not happen in time. `problem` says what is known instead."""


class RequestsUnavailable(RelayError):  # noqa: N818
    """Job requests cannot be taken: the stream or the durable is missing, or the user may not read it."""

    def __init__(self, problem: str) -> None:
        self.problem = escape(problem)
        super().__init__(f"job requests cannot be taken: {self.problem}")


class RequestUnsettled(RelayError):  # noqa: N818
    """The server has not confirmed what a job request was told: it may come again."""

    def __init__(self, problem: str) -> None:
        self.problem = escape(problem)
        super().__init__(f"the job request may come again: {self.problem}")


class ClientClosed(RelayError):  # noqa: N818
    """The client is closed."""

    def __init__(self) -> None:
        super().__init__("the client is closed: make a new one")


TEMPORARY: Final = (NoAnswer, TooManyQueries, AnswerUnavailable)
"""The errors after which asking again can help."""

_BY_CODE: Final[dict[str, type[QueryFailed]]] = {
    "400": InvalidQuery,
    "404": UnknownJob,
    "429": TooManyQueries,
    "500": RelayFault,
    "503": AnswerUnavailable,
}


def refusal(code: str, reason: str) -> QueryFailed:
    """The error for an answer with this `Nats-Service-Error-Code`."""
    return _BY_CODE.get(code, QueryFailed)(reason)
