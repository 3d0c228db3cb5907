"""Requests that are not answered: why, and what each protocol calls it."""

from collections.abc import Mapping
from types import MappingProxyType

GRPC_CODES: Mapping[int, str] = MappingProxyType({
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    409: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
})  # fmt: skip
"""The name of gRPC's status for each HTTP status that a refusal may have."""


_LONGEST = 500


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """A request is not answered.

    Args:
        status: of HTTP; a key of `GRPC_CODES`.
        reason: one sentence: which part of the request, what is wrong with it, what to do.
        retry_after_seconds: when it may be worth trying again.
    """

    def __init__(self, status: int, reason: str, *, retry_after_seconds: int | None = None) -> None:
        reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
        super().__init__(reason)
        self.status, self.reason, self.retry_after_seconds = status, reason, retry_after_seconds


def bad(reason: str) -> Refusal:
    """Returns the refusal of a malformed request."""
    return Refusal(400, reason)
