"""The one error tree, ordered by who must act.

    CopypoolError
    |-- CallerError            the caller must change something
    |   |-- Invalid            400  malformed path, header, range, size, digest text
    |   |-- Unauthorized       401  no token, an unknown one, an expired one
    |   |-- Forbidden          403  the token's role does not allow the verb
    |   |-- NotFound           404  no such file, version, namespace (or out of the token's scope)
    |   |-- Conflict           409  the file exists, or is not the version the caller named
    |   |   `-- PreconditionFailed 412  the condition that the request carried does not hold
    |   |-- TooLarge           413  above a stated limit
    |   |-- RangeNotSatisfiable 416
    |   |-- QuotaExceeded      507  the namespace holds as much as its quota allows
    |   `-- DigestRefused      422  the bytes received do not have the digest the caller stated
    |-- RetryLater             wait, or go elsewhere, then repeat with the same write id
    |   |-- Overloaded         429  a queue is full; nothing was taken in
    |   |-- Unavailable        503  no location or node can be reached now
    |   |-- CatalogDown        503  etcd does not answer; nothing was read or changed
    |   |-- NotLeader          503  ask the leader
    |   |-- Fenced             503  the node's session or extent ended; take another write lease
    |   `-- NoSpace            507  nothing was stored; another volume may have room
    |-- OutcomeUnknown         504  nobody knows whether it was applied: repeat with the same write id
    `-- Alarm                  bytes are wrong or gone; a person should know
        |-- DigestMismatch     500  stored bytes failed their checksum
        |-- DataLost           500  no location is left that could hold the bytes
        `-- BrokenInvariant    500  the program found itself in a state it rules out

`code` is what programs compare, `message` says what, where and what to do next, `details` carries facts as
JSON values. Foreign exceptions become one of these at the seam where they enter.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class CopypoolError(Exception):
    """Base of everything Copypool raises on purpose."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class CallerError(CopypoolError):
    """The caller must change something."""

    code = "caller_error"
    http_status = 400
    exit_code = 2


class Invalid(CallerError):
    """Malformed input."""

    code = "invalid"
    http_status = 400


class Unauthorized(CallerError):
    """No token, an unknown one or an expired one."""

    code = "unauthorized"
    http_status = 401
    exit_code = 4


class Forbidden(CallerError):
    """The token or capability does not allow this."""

    code = "forbidden"
    http_status = 403
    exit_code = 4


class NotFound(CallerError):
    """No such thing, or nothing that this caller may see."""

    code = "not_found"
    http_status = 404
    exit_code = 5


class Conflict(CallerError):
    """The file exists, or is not the version the caller named."""

    code = "conflict"
    http_status = 409
    exit_code = 6


class PreconditionFailed(Conflict):
    """The file is not what the request's condition says: it exists, or its current version is another one."""

    code = "precondition_failed"
    http_status = 412


class TooLarge(CallerError):
    """Above a stated limit."""

    code = "too_large"
    http_status = 413


class RangeNotSatisfiable(CallerError):
    """The range lies outside the file."""

    code = "range_not_satisfiable"
    http_status = 416


class QuotaExceeded(CallerError):
    """The namespace holds as much as its quota allows: delete files, or have the quota raised."""

    code = "quota"
    http_status = 507


class DigestRefused(CallerError):
    """The bytes received do not have the digest that the caller stated; nothing was stored."""

    code = "digest_refused"
    http_status = 422


class RetryLater(CopypoolError):
    """Nothing was changed: wait or go elsewhere, then repeat with the same write id."""

    code = "retry_later"
    http_status = 503
    retryable = True
    exit_code = 7


class Overloaded(RetryLater):
    """A bounded queue is full, or too many writers replace one file."""

    code = "overloaded"
    http_status = 429


class Unavailable(RetryLater):
    """No location or node can be reached now."""

    code = "unavailable"
    http_status = 503


class CatalogDown(RetryLater):
    """etcd does not answer; nothing was read or changed."""

    code = "catalog_down"
    http_status = 503


class NotLeader(RetryLater):
    """Only the leader can do this."""

    code = "not_leader"
    http_status = 503


class Fenced(RetryLater):
    """The session, epoch, term or extent that the request relied on has ended."""

    code = "fenced"
    http_status = 503


class NoSpace(RetryLater):
    """No room where it was asked for; nothing was stored."""

    code = "no_space"
    http_status = 507


class OutcomeUnknown(CopypoolError):
    """It may or may not have been applied; repeating with the same write id is safe."""

    code = "outcome_unknown"
    http_status = 504
    retryable = True
    exit_code = 8


class Alarm(CopypoolError):
    """Bytes are wrong or gone, or an invariant is broken."""

    code = "alarm"
    http_status = 500
    exit_code = 9


class DigestMismatch(Alarm):
    """Stored bytes failed their checksum."""

    code = "digest_mismatch"


class DataLost(Alarm):
    """No location is left that could hold the bytes."""

    code = "data_lost"


class BrokenInvariant(Alarm):
    """The program found itself in a state it rules out; the message tells the story."""

    code = "broken_invariant"


def _walk(cls: type[CopypoolError]) -> list[type[CopypoolError]]:
    found = [cls]
    for child in cls.__subclasses__():
        found.extend(_walk(child))
    return found


#: code -> class, for every class of the tree. HTTP status and retryability are attributes of the class.
BY_CODE: dict[str, type[CopypoolError]] = {cls.code: cls for cls in _walk(CopypoolError)}


class ErrorBody(msgspec.Struct, frozen=True):
    """What every server answers with a status of 400 or above, as JSON or msgpack."""

    code: str
    message: str
    retryable: bool
    details: dict[str, Any] = {}


def to_body(error: CopypoolError) -> ErrorBody:
    """The wire form of an error."""
    return ErrorBody(error.code, error.message, error.retryable, error.details)


def from_body(body: ErrorBody) -> CopypoolError:
    """The exception that a wire body stands for; an unknown code keeps its message and retryability."""
    cls = BY_CODE.get(body.code)
    if cls is None:
        cls = Unavailable if body.retryable else CopypoolError
    details = {str(key): value for key, value in body.details.items() if key != "message"}
    return cls(body.message, **details)


def from_response(status: int, content: bytes, content_type: str = "application/json") -> CopypoolError:
    """The exception for an HTTP answer >= 400, also one that is not ours (a proxy's page)."""
    try:
        decode = msgspec.msgpack.decode if "msgpack" in content_type else msgspec.json.decode
        return from_body(decode(content, type=ErrorBody))
    except msgspec.MsgspecError:
        text = content[:200].decode("utf-8", "replace")
        if status in (429, 502, 503, 504):
            return Unavailable(f"HTTP {status} from something between us and the server: {text}")
        return CopypoolError(f"HTTP {status}, not an answer of Copypool: {text}")
