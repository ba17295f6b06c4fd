"""What a record's outcome in the catalog means for the client that sent it. Pure, but for setting the future."""

from __future__ import annotations

import asyncio

from copypool.protocol.api import Receipt
from copypool.protocol.digests import format_digest
from copypool.protocol.errors import (
    CatalogDown,
    Conflict,
    CopypoolError,
    Fenced,
    Forbidden,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
)
from copypool.protocol.internal import EntryResult
from copypool_node.group import PendingRecord, Verdict


def receipt_of(record: PendingRecord, result: EntryResult, volume: str, twin: str = "") -> Receipt | CopypoolError:
    """The receipt of a committed or replayed record, or the error of a refused one.

    `twin` is the volume of another node that holds the record as well, fsync'd and claimed in the commit.
    """
    outcome = result.outcome
    if outcome == "committed" or outcome == "replayed":
        replayed = outcome == "replayed"
        return Receipt(
            namespace=str(record.namespace),
            path=record.path,
            version=result.version or record.version,
            size=record.size,
            digest="" if record.kind == "tombstone" else format_digest(record.digest),
            segment=None if replayed or record.kind == "tombstone" else record.segment,
            volumes=[] if replayed else [volume, twin] if twin else [volume],
            ack="copy" if twin and not replayed else "primary",
            replayed=replayed,
            header_bytes=0 if replayed else record.header_bytes,
        )
    where = f"{record.path!r}: "
    message = result.message
    if outcome == "conflict":
        return PreconditionFailed(where + (message or "the file exists"), version=result.version)
    if outcome == "other_write":
        return Conflict(where + (message or "this write id has stored something else"), version=result.version)
    if outcome == "not_found":
        return NotFound(where + (message or "no such file"))
    if outcome == "stale":  # nobody's condition failed: a write that is sent again gets a higher version
        return Overloaded(where + (message or "a newer version landed meanwhile") + ": repeat with the same write id")
    if outcome == "contended":
        return Overloaded(where + (message or "too many writers replace this file") + ": repeat with the same write id")
    if outcome == "forbidden":
        return Forbidden(where + (message or "the capability does not cover it, or the namespace is gone"))
    if outcome == "unknown_write":
        return OutcomeUnknown(where + (message or "the write id is too old to tell whether it was applied"))
    return Invalid(where + (message or "the catalog refused it"))


def refusal_of_group(error: CopypoolError) -> CopypoolError:
    """What the writers of a group are told that was refused as a whole and can never be applied any more."""
    if isinstance(error, Fenced | CatalogDown):
        return error
    return Fenced(f"the group was refused: {error.message}")


def answer(record: PendingRecord, outcome: Receipt | CopypoolError) -> None:
    """Wake the client's request; one that has had its answer (a deadline) is left alone."""
    future = record.waiter
    if not isinstance(future, asyncio.Future) or future.done():
        return
    if isinstance(outcome, Receipt):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)


def answer_verdict(verdict: Verdict, volume: str) -> None:
    """Wake the client of a record whose outcome is final."""
    answer(verdict.record, receipt_of(verdict.record, verdict.result, volume, verdict.twin))
