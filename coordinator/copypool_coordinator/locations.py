"""Extent rows and their locations: what each event makes of them. Pure: rows in, new rows out; nothing is changed.

The length of a location is a verified and fsync'd prefix of the truth. A `good` location of a sealed extent may still
be shorter than the extent (a copy that was behind when it was sealed): compare lengths, not states, for protection.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from copypool.protocol.api import LocationState
from copypool.protocol.internal import EXTENT_HEADER_BYTES, Refusal
from copypool_coordinator import twins
from copypool_coordinator.rows import FORMAT, ExtentRow, Location, OpenRow, Share

#: Namespaces of one extent that have a share of their own; the others are one share under `OTHERS`.
SHARES_MAX = 8
OTHERS = 0  #: no namespace has this id
STALLED_MAX = 300  #: characters


def opened(class_id: int, node: int, volume: int, epoch: int, now_ms: int) -> tuple[ExtentRow, OpenRow]:
    """The rows of a new extent, whose only location is its writer's."""
    location = Location(volume, 1, "good", 0, 0, 0, now_ms)
    row = ExtentRow(FORMAT, class_id, True, node, volume, epoch, now_ms, [location], next_generation=2)
    return row, OpenRow(FORMAT, EXTENT_HEADER_BYTES, -1, 0, 0, 0)


def find(row: ExtentRow, volume: int, generation: int) -> Location | None:
    """The location of this generation on this volume."""
    for location in row.locations:
        if location.volume == volume and location.generation == generation:
            return location
    return None


def writer(row: ExtentRow) -> Location | None:
    """The location that the extent was, or is, written to; None once it has left the row."""
    return find(row, row.writer_volume, 1)


def with_location(row: ExtentRow, old: Location, new: Location) -> ExtentRow:
    """The row with one location exchanged."""
    return replace(row, locations=[new if location is old else location for location in row.locations])


def without_location(row: ExtentRow, old: Location) -> ExtentRow:
    """The row without one location."""
    return replace(row, locations=[location for location in row.locations if location is not old])


def sealed(row: ExtentRow, at: OpenRow, now_ms: int) -> ExtentRow:
    """The row of the extent once it has ended at its committed state; a live twin holds all of it."""
    ended = replace(
        twins.ended(row, at, now_ms),
        open=False,
        length=at.length,
        records=at.records,
        payload_bytes=at.payload_bytes,
        group=at.group,
        refusals=at.refusals,
        sealed_ms=now_ms,
        shares=at.shares,
    )
    own = writer(ended)
    if own is None:
        return ended
    return with_location(ended, own, replace(own, length=at.length, records=at.records, changed_ms=now_ms))


def reserved(row: ExtentRow, volume: int, now_ms: int) -> tuple[ExtentRow, int] | None:
    """The row with a new `copying` location, and its generation; None when the volume holds one that is in the way.

    Beside a damaged or missing location a new generation may grow; the old one goes when the new one is good.
    """
    for location in row.locations:
        if location.volume == volume and location.state not in ("damaged", "missing"):
            return None
    generation = row.next_generation
    location = Location(volume, generation, "copying", 0, 0, 0, now_ms)
    return replace(row, locations=[*row.locations, location], next_generation=generation + 1), generation


def progressed(
    row: ExtentRow, location: Location, length: int, records: int, *, finished: bool, verified: bool, now_ms: int
) -> ExtentRow:
    """The row after a puller's report. Lengths never shrink, and a late report changes nothing.

    It counts as good when it says that it is finished and, of a sealed extent, has all of it.
    """
    complete = finished and (row.open or length >= row.length)
    state: LocationState = "good" if complete and location.state == "copying" else location.state
    proven = now_ms if verified and not row.open and length >= row.length else location.verified_ms
    if length < location.length or (length == location.length and state == location.state and not verified):
        return row
    new = replace(
        location, length=length, records=max(records, location.records), state=state, verified_ms=proven,
        changed_ms=now_ms, stalled="", stalled_here=False,
    )  # fmt: skip
    return with_location(row, location, new)


def given_up(row: ExtentRow, location: Location, length: int, why: str, here: bool) -> ExtentRow:
    """The row after a node gave a pull up: why, until it goes on. What it says twice is written once."""
    if length < location.length or not (row.open or location.length < row.length):
        return row
    stalled = replace(location, stalled=why[:STALLED_MAX], stalled_here=here)
    return row if stalled == location else with_location(row, location, stalled)


def verified(row: ExtentRow, location: Location, length: int, digest: bytes, now_ms: int) -> ExtentRow:
    """The row after a node read a whole location back and every byte matched.

    The first holder to do so with a sealed extent sets the digest; one that differs later is damaged. A damaged
    or missing mark goes, since here is the evidence against it; a location that is being dropped stays so.
    """
    if length < location.length or (row.open and location is writer(row)) or twins.is_live(row, location):
        return row
    whole = not row.open and length >= row.length and digest != b""
    if whole and row.digest and row.digest != digest:
        evidence = f"its digest {digest.hex()} is not the extent's {row.digest.hex()}"
        return marked(row, location, "damaged", evidence, now_ms)
    state: LocationState = "good" if location.state in ("damaged", "missing") else location.state
    healed = replace(location, state=state, evidence="", verified_ms=now_ms, bad_offset=-1)
    if healed.before in ("damaged", "missing"):
        healed.before = "good"
    if state != location.state:
        healed.changed_ms = now_ms
    row = with_location(row, location, healed)
    return replace(row, digest=digest) if whole and not row.digest else row


def marked(
    row: ExtentRow, location: Location, state: LocationState, evidence: str, now_ms: int, bad_offset: int = -1
) -> ExtentRow:
    """The row with a location marked damaged or missing; the length stays: it says what was once there."""
    if location.state in (state, "dropping"):
        return row
    after = replace(location, state=state, evidence=evidence[:500], changed_ms=now_ms, bad_offset=bad_offset)
    return with_location(row, location, after)


def dropping(row: ExtentRow, location: Location, now_ms: int, decided_ms: int = 0) -> ExtentRow:
    """The row with a location that leaves; whether it may is decided elsewhere, and was by `decided_ms`."""
    leaving = replace(location, state="dropping", before=location.state, decided_ms=decided_ms, changed_ms=now_ms)
    return with_location(row, location, leaving)


def before_drop(location: Location) -> LocationState:
    """What a `dropping` location was before."""
    return location.before or ("damaged" if location.evidence else "good")


def erasing(row: ExtentRow, location: Location) -> ExtentRow:
    """The row with a `dropping` location that its node may be told to delete: from now on it cannot stay."""
    return with_location(row, location, replace(location, erasing=True))


def called_off(row: ExtentRow, location: Location, now_ms: int) -> ExtentRow | None:
    """The row with a `dropping` location that stays after all; None when it is too late for that.

    It is what it was before, of the same generation: as long as the row does not say `erasing`, nobody was told to
    delete it. Its proof begins anew, since it is needed now.
    """
    if location.erasing:
        return None
    staying = replace(location, state=before_drop(location), before="", decided_ms=0, verified_ms=0, changed_ms=now_ms)
    return with_location(row, location, staying)


def next_open(
    before: OpenRow,
    *,
    length: int,
    group: int,
    records: int,
    payload_bytes: int,
    noted: list[Refusal],
    refused: list[int],
    copied_length: int,
    now_ms: int,
    put: Mapping[int, tuple[int, int]] | None = None,
) -> OpenRow:
    """The commit row after one more group. `put`: namespace -> records and payload bytes that the group brought.

    `uncopied_since_ms` begins anew when everything before this group was copied, as far as is known.
    """
    gone = {(each.group, each.index) for each in noted}
    kept = [each for each in before.refusals if (each.group, each.index) not in gone]
    since = before.uncopied_since_ms
    if copied_length >= length:
        since = 0
    elif not since or copied_length >= before.length or before.length <= EXTENT_HEADER_BYTES:
        since = now_ms
    return OpenRow(
        FORMAT,
        length,
        group,
        before.records + records,
        before.payload_bytes + payload_bytes,
        since,
        kept + [Refusal(group, index) for index in refused],
        with_shares(shares_of(before), put or {}, length),
        before.twin,
    )


def shares_of(row: ExtentRow | OpenRow) -> list[Share]:
    """What each namespace has in the extent; what an older version did not write down counts as others'."""
    if row.shares or not row.records:
        return row.shares
    return [Share(OTHERS, row.length, row.records, row.payload_bytes)]


def with_shares(before: list[Share], put: Mapping[int, tuple[int, int]], end: int) -> list[Share]:
    """The shares after a group that ends at `end`. A namespace beyond the first `SHARES_MAX` counts as others'."""
    shares = {share.namespace: share for share in before}
    for namespace, (records, payload_bytes) in put.items():
        known = namespace in shares or len(shares.keys() - {OTHERS}) < SHARES_MAX
        name = namespace if known else OTHERS
        share = shares.get(name, Share(name, 0, 0, 0))
        shares[name] = Share(name, end, share.records + records, share.payload_bytes + payload_bytes)
    return list(shares.values())
