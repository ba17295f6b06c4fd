"""Copypool: a distributed file store with primary and copy storage pools.

    from copypool import Client            # async
    from copypool.sync import Client       # the same calls, blocking

Names are loaded on first use, so that the servers, which import `copypool.protocol`, do not load the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copypool.client import Client as Client
    from copypool.profile import Profile as Profile
    from copypool.protocol.errors import Alarm as Alarm
    from copypool.protocol.errors import BrokenInvariant as BrokenInvariant
    from copypool.protocol.errors import CallerError as CallerError
    from copypool.protocol.errors import CatalogDown as CatalogDown
    from copypool.protocol.errors import Conflict as Conflict
    from copypool.protocol.errors import CopypoolError as CopypoolError
    from copypool.protocol.errors import DataLost as DataLost
    from copypool.protocol.errors import DigestMismatch as DigestMismatch
    from copypool.protocol.errors import DigestRefused as DigestRefused
    from copypool.protocol.errors import Fenced as Fenced
    from copypool.protocol.errors import Forbidden as Forbidden
    from copypool.protocol.errors import Invalid as Invalid
    from copypool.protocol.errors import NoSpace as NoSpace
    from copypool.protocol.errors import NotFound as NotFound
    from copypool.protocol.errors import NotLeader as NotLeader
    from copypool.protocol.errors import OutcomeUnknown as OutcomeUnknown
    from copypool.protocol.errors import Overloaded as Overloaded
    from copypool.protocol.errors import RangeNotSatisfiable as RangeNotSatisfiable
    from copypool.protocol.errors import RetryLater as RetryLater
    from copypool.protocol.errors import TooLarge as TooLarge
    from copypool.protocol.errors import Unauthorized as Unauthorized
    from copypool.protocol.errors import Unavailable as Unavailable
    from copypool.reading import FileReader as FileReader
    from copypool.results import BulkResult as BulkResult
    from copypool.results import FileVersion as FileVersion

_HOMES = {
    "Client": "copypool.client",
    "Profile": "copypool.profile",
    "FileReader": "copypool.reading",
    "BulkResult": "copypool.results",
    "FileVersion": "copypool.results",
}
_ERRORS = (
    "Alarm",
    "BrokenInvariant",
    "CallerError",
    "CatalogDown",
    "Conflict",
    "CopypoolError",
    "DataLost",
    "DigestMismatch",
    "DigestRefused",
    "Fenced",
    "Forbidden",
    "Invalid",
    "NoSpace",
    "NotFound",
    "NotLeader",
    "OutcomeUnknown",
    "Overloaded",
    "RangeNotSatisfiable",
    "RetryLater",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
)

__all__ = [*_HOMES, *_ERRORS]  # noqa: PLE0604 - strings, computed


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name) or ("copypool.protocol.errors" if name in _ERRORS else None)
    if home is None:
        raise AttributeError(f"module 'copypool' has no attribute {name!r}")
    return getattr(import_module(home), name)
